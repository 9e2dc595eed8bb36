"""Runs started as a user starts them, as commands, for the tests that watch and kill them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
UPDATES = 40  # some seconds: time to be killed in
SMALL = [  # the demo, made small: seconds, with a checkpoint every 4 updates
    f"updates={UPDATES}",
    "batch=32",
    "network.group=16",
    # An L-inf step takes signs: where a gradient is almost 0, rounding decides it, and within 20 updates some are.
    "objective.attack={use: pgd, threat: {use: l2, eps: 1.5}, steps: 2, step_size: 0.75}",
    "optimiser.lr.peak=0.002",  # a large rate magnifies rounding within ten updates
    "validate.every=0",
    "validate.attack=null",
    "validate.final=null",
    "checkpoint.every=4",
    "records.wandb=off",
    "records.pictures=false",
]
LIMIT = 300.0  # seconds until something that should happen counts as absent


def until(true: Callable[[], object], what: str, limit: float = LIMIT) -> None:
    """Wait for something; TimeoutError names what did not happen."""
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit:g} s")
        time.sleep(0.01)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the interpreter's folder first in PATH, and no cluster named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ROBUST_TRAIN_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


@dataclass
class Started:
    """A command at work in a process group of its own; what it prints goes to files."""

    process: subprocess.Popen[bytes]
    folder: Path  # the run's
    log: Path

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(LIMIT)

    @property
    def out(self) -> str:
        """What it has printed so far on stdout."""
        return self.log.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        """What it has printed so far on stderr."""
        return self.log.with_suffix(".err").read_text()

    def updates(self) -> int:
        """Lines of metrics.jsonl so far."""
        return len(metrics(self.folder))

    def processes(self) -> list[psutil.Process]:
        """The command's process and all below it: Ray's, and the run's."""
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def leading(self, folder: Path | None = None) -> psutil.Process:
        """The process that writes metrics.jsonl in the run's folder."""
        written = (folder or self.folder) / "metrics.jsonl"
        return next(process for process in self.processes() if holds(process, written))

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal or a scheduler sends it."""
        os.killpg(self.process.pid, number)


def holds(process: psutil.Process, path: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return any(file.path == str(path) for file in process.open_files())
    except psutil.Error:
        return False


def metrics(folder: Path) -> list[bytes]:
    """The whole lines of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """The same, read."""
    return [json.loads(line) for line in metrics(folder)]


@contextmanager
def command(words: list[str], folder: Path, log: Path, where: Path, **changes: str) -> Iterator[Started]:
    """A command at work. Whatever of it is left at the end is killed."""
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            words, cwd=where, env=environment(**changes), stdout=out, stderr=err, start_new_session=True
        )
    started = Started(process, folder, log)
    try:
        yield started
    finally:
        if process.poll() is None:
            left = started.processes()
            for one in left:
                with suppress(psutil.NoSuchProcess):  # gone by itself meanwhile, as others are killed around it
                    one.kill()
            psutil.wait_procs(left, timeout=30)
            process.wait(30)


@contextmanager
def launched(folder: Path, *settings: str, debug: bool = False) -> Iterator[Started]:
    """`python -m launch.train` with the small demo, beside its folder; the data lie beside it too."""
    beside = folder.parent
    log = beside / f"{folder.name}-{time.monotonic_ns()}"
    words = [sys.executable, "-m", "launch.train", str(DEMO), *SMALL, f"folder={folder.name}", *settings]
    with command([*words, *(["--debug"] if debug else [])], folder, log, beside) as started:
        yield started
