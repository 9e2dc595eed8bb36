"""A process whose registries and modules are put back as they were: a user's modules change both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robust_train.read import uses
from robust_train.read.registry import registries
from tests.uses.lab import lab


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the lab's package, which is the working folder's `lab`; its modules are forgotten at the end."""
    modules, path = set(sys.modules), list(sys.path)
    known = {noun: dict(registry.known) for noun, registry in registries.items()}
    monkeypatch.setattr(uses, "_names", {})
    monkeypatch.setattr(uses, "_texts", {})
    monkeypatch.setattr(uses, "_told", set())
    lab(tmp_path)
    monkeypatch.chdir(tmp_path / "lab")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("my_lab", "not_so", "alone"):
            del sys.modules[name]
    for noun, registry in registries.items():
        registry._known.clear()
        registry._known.update(known[noun])
