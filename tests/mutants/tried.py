"""Mutations one by one, each in a copy of the project, under the tests that must fail.

Every mutant is a process forked from one that has torch loaded: a test of a tenth of a second costs little more.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from robust_train.read import yaml

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("mutants.yaml")
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "runs", "data", "*.egg-info", "build")
LIMIT = 300  # seconds: a mutant that runs on for ever is caught too
PASSED, FAILED = 0, 1  # pytest's exit codes; any other says that nothing was tested


@dataclass(frozen=True)
class Mutant:
    """One mutation, and what must fail on it."""

    what: str
    file: str  # in robust_train/
    old: str
    new: str
    test: str  # test files, folders or node ids, by spaces

    def mutated(self, text: str) -> str:
        """The file's text with the mutation. Raises ValueError where `old` does not stand there once."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"mutant {self.what!r}: its `old` stands {text.count(self.old)} times in robust_train/{self.file}, not "
                "once: move the entry of tests/mutants/mutants.yaml along with the line it mutates"
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a mutant."""

    caught: bool
    why: str  # the first test that failed; or why nothing is known
    seconds: float


def listed(words: Sequence[str] = ()) -> list[Mutant]:
    """The mutants whose `what` or file has one of the words; all without words."""
    every = [Mutant(**tree) for tree in yaml.read(LIST.read_text(encoding="utf-8"), str(LIST))]
    return [one for one in every if not words or any(word in f"{one.what} {one.file}" for word in words)]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "project"
        copy.mkdir()
        for name in ("robust_train", "launch", "tools", "tests", "configs"):
            shutil.copytree(ROOT / name, copy / name, ignore=LEFT_OUT, symlinks=True)
        shutil.copytree(ROOT / "robust_train" / "data", copy / "robust_train" / "data", dirs_exist_ok=True)
        shutil.copytree(ROOT / "tests" / "data", copy / "tests" / "data", dirs_exist_ok=True)
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


def ran(copy: Path, tests: str, limit: float = LIMIT) -> tuple[int, str]:
    """(exit code, output) of pytest over some tests in the copy, in a process forked from this one."""
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            os.setsid()
            os._exit(_pytest(copy, tests, told.fileno()))
        until = time.monotonic() + limit
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return FAILED, f"FAILED {tests}: no end within {limit:g} s"
            time.sleep(0.02)
        told.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), told.read().decode(errors="replace")


def _pytest(copy: Path, tests: str, told: int) -> int:
    """In the forked process: the copy's tests on the copy's code, and nothing of this project's."""
    import pytest

    os.dup2(told, 1)
    os.dup2(told, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)  # where somebody captures those of this process
    os.chdir(copy)
    own = [name for name in sys.modules if name.partition(".")[0] in ("robust_train", "launch", "tools", "tests")]
    for name in own:
        if name != "robust_train.vision":  # what it has declared to torch cannot be declared twice
            del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(copy)
    known = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"  # plugins that torch has loaded
    try:
        return int(
            pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "-W", known, *tests.split()])
        )
    except BaseException as error:
        print(error)
        return 3


def outcome(copy: Path, mutant: Mutant) -> Outcome:
    """The mutant's fate; the copy is as before afterwards."""
    path = copy / "robust_train" / mutant.file
    plain, began = path.read_text(encoding="utf-8"), time.monotonic()
    path.write_text(mutant.mutated(plain), encoding="utf-8")
    try:
        code, said = ran(copy, mutant.test)
    finally:
        path.write_text(plain, encoding="utf-8")
    took = time.monotonic() - began
    if code == FAILED:
        first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
        return Outcome(True, first[1] if first else "", took)
    why = "every test passed" if code == PASSED else f"nothing was tested (pytest's exit code {code}): {said[-300:]}"
    return Outcome(False, why, took)
