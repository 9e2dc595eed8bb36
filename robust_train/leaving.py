"""SIGTERM: a run that is asked to leave ends its update, writes a checkpoint and goes; a second one ends it at once.

Schedulers send it before they kill (SLURM 30 s before, Kubernetes too). Whoever hears it, all ranks leave after the
same update: the question goes round in the update's own all-reduce. What takes longer than GRACE is not waited for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robust_train.read.errors import Terminated

GRACE = 20.0  # seconds for the update at work and its checkpoint
GO_ON = "the same command goes on from the last whole checkpoint"

_asked = threading.Event()
_patient = threading.Event()  # whether the question is asked again before long


def asked() -> bool:
    """Whether this process has been asked to leave."""
    return _asked.is_set()


def ask() -> None:
    """Ask it, from any thread."""
    _asked.set()


@contextmanager
def patiently() -> Iterator[None]:
    """While it lasts somebody looks at `asked` after each update: a signal waits for that, but not for ever."""
    _patient.set()
    try:
        yield
    finally:
        _patient.clear()


@contextmanager
def heard() -> Iterator[None]:
    """SIGTERM is heard while it lasts, in the main thread; elsewhere signals are somebody else's.

    What was asked of one run is no question to the next one in this process: it is forgotten when it is over, and not
    when it begins, for whoever asks a process that is starting means it.
    """
    try:
        with _signals():
            yield
    finally:
        _asked.clear()


@contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        if _asked.is_set() or not _patient.is_set():
            raise Terminated(f"terminated; {GO_ON}")
        _asked.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def late(*_: Any) -> None:
        raise Terminated(f"terminated, {GRACE:g} s after it was asked to and without a checkpoint; {GO_ON}")

    before = {number: signal.signal(number, new) for number, new in ((signal.SIGTERM, leave), (signal.SIGALRM, late))}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in before.items():
            signal.signal(number, old)
