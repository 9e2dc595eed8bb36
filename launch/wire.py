"""What the leading process of a run says, brought to the terminal of whoever started it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Any

from robust_train.read.errors import REMEDIES

PERIOD = 0.25  # seconds between two looks at what was said
SHOW_CURSOR = "\x1b[?25h"  # a bar hides it, and one whose process was killed never shows it again


class Said:
    """A Ray actor between the processes of a run and the one that started it: text, and why the run was refused."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._refusal: BaseException | None = None
        self._leaving = False

    def say(self, text: str) -> None:
        """Add to what is to be shown."""
        self._text.append(text)

    def heard(self) -> str:
        """What was said since the last call."""
        text, self._text = "".join(self._text), []
        return text

    def leave(self) -> None:
        """The process that started it was asked to leave."""
        self._leaving = True

    def leaving(self) -> bool:
        """Whether it was."""
        return self._leaving

    def refuse(self, error: BaseException) -> None:
        """No other try can cure this; the first such error counts."""
        self._refusal = self._refusal or error

    def refusal(self) -> BaseException | None:
        """Why the run was refused, if it was."""
        return self._refusal


@dataclass(frozen=True)
class Terminal:
    """What the text will be shown on."""

    columns: int
    lines: int
    live: bool  # whether it is a terminal at all: a bar there, plain lines elsewhere

    @classmethod
    def here(cls) -> Terminal:
        """Of this process's stderr."""
        size = shutil.get_terminal_size()
        return cls(size.columns, size.lines, sys.stderr.isatty())


class Distant(io.TextIOBase):
    """A text stream whose other end is a terminal elsewhere. Writing never waits for it."""

    def __init__(self, said: Any, terminal: Terminal) -> None:
        self._said, self._terminal = said, terminal
        self._held: list[str] = []

    def isatty(self) -> bool:
        """As the other end."""
        return self._terminal.live

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Keep text until a line ends or a flush."""
        self._held.append(text)
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what is kept."""
        if self._held:
            text, self._held = "".join(self._held), []
            self._said.say.remote(text)


@contextmanager
def speaking(said: Any, terminal: Terminal) -> Iterator[None]:
    """stderr of this process goes to the distant terminal; at the end all of it has arrived."""
    import ray

    os.environ.update(COLUMNS=str(terminal.columns), LINES=str(terminal.lines))
    stream = Distant(said, terminal)
    try:
        with redirect_stderr(stream):
            yield
    finally:
        stream.flush()
        ray.get(said.say.remote(""))  # calls of one process arrive in their order: after this one, all have


@contextmanager
def _looking(name: str, look: Callable[[], bool | None], last: bool = False) -> Iterator[None]:
    """`look` every PERIOD in a thread while it lasts, until it says True or the cluster is gone; last: once more then.

    What ends a run is said elsewhere, so Ray's errors end the looking in silence.
    """
    import ray

    over = threading.Event()

    def follow() -> None:
        with suppress(ray.exceptions.RayError):
            while not over.wait(PERIOD):
                if look():
                    return
            if last:
                look()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


@contextmanager
def obeying(said: Any, leave: Callable[[], None]) -> Iterator[None]:
    """`leave` is called where the process that started it is asked to leave, while it lasts."""
    import ray

    def asked() -> bool:
        if not ray.get(said.leaving.remote()):
            return False
        leave()
        return True

    with _looking("obeying", asked):
        yield


@contextmanager
def passing_on(said: Any) -> Iterator[None]:
    """SIGTERM goes to the processes of the run while it lasts; a second one ends this process as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        said.leave.remote()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def listening(said: Any) -> Iterator[None]:
    """What is said appears on this process's stderr while it lasts."""
    import ray

    def show() -> None:
        text = ray.get(said.heard.remote())
        if text:
            sys.stderr.write(text)
            sys.stderr.flush()

    try:
        with _looking("listening", show, last=True):
            yield
    finally:
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)


def incurable(error: Exception) -> bool:
    """Whether another try must end in the same way: bad input, a disk that is full or forbidden, a bug.

    Torch, its process groups and CUDA raise RuntimeError for what may pass; a lost peer or a dying disk, OSError.
    """
    if isinstance(error, OSError):
        return error.errno in REMEDIES
    return not isinstance(error, (RuntimeError, MemoryError, EOFError))
