"""Triton's interpreter, in a process of its own: whether Triton interprets is fixed when a kernel is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function of the package where every kernel runs in the interpreter: interpreted(function, *arguments)."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # inherited by the process, which starts at the first call
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(os.getpid).result()
            os.environ.pop("TRITON_INTERPRET")
            yield lambda function, *arguments: process.submit(function, *arguments).result()
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
