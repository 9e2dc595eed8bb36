"""Images made ready before the device asks: processes that decode chunks, and make of them what asks no network.

What a piece finds is the same whether it is made here or there; only the waiting is another.
"""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_train.evaluate.store import Job, is_rows
from robust_train.keyed import Key
from robust_train.nouns import Batch, Dataset, Piece, Place
from robust_train.read.uses import Carried

if TYPE_CHECKING:
    from robust_train.evaluate.work import Task

HELD = 2  # what each process may have made ready that nobody has taken yet: a chunk's images, or one corruption of them
Step = tuple[str, int, str | None]
"""Which images, the chunk's number, and a piece that is made of it; None: the chunk itself."""


class Ahead:
    """Processes that read ahead, for one round of an evaluation. Their own shares of memory are HELD chunks each."""

    def __init__(self, data: Dataset, task: Task, workers: int) -> None:
        start = get_context("forkserver")  # fork is a hazard beside the threads of Ray and CUDA
        start.set_forkserver_preload([__name__])
        self._pool = ProcessPoolExecutor(workers, start, _begin, (Carried((data, task)),))
        self._most = HELD * workers
        self._task = task
        self._wanted: deque[Step] = deque()
        self._running: dict[Step, Future[bytes]] = {}
        self._lock = Lock()  # jobs may be announced while another is at work

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def want(self, job: Job) -> None:
        """Begin to make ready what a job will ask for, after all that was asked for before."""
        with self._lock:
            steps = [(job.on, job.number, name) for name in (None, *beforehand(self._task.pieces, job))]
            self._wanted.extend(step for step in steps if step not in self._running and step not in self._wanted)
            self._fill()

    def take(self, on: str, number: int, name: str | None = None) -> Any:
        """A chunk as it is stored, or what a piece found on it. Raises what reading raised."""
        step = (on, number, name)
        with self._lock:
            if step in self._wanted:
                self._wanted.remove(step)
            made = self._running.pop(step, None) or self._pool.submit(_made, *step)
            self._fill()
        return pickle.loads(made.result())

    def _fill(self) -> None:
        while self._wanted and len(self._running) < self._most:
            step = self._wanted.popleft()
            self._running[step] = self._pool.submit(_made, *step)


def asked(pieces: dict[str, Piece] | Any, job: Job) -> list[str]:
    """The pieces that a job makes, in order: those it lacks, and those that they need and nobody has kept."""
    names: set[str] = set(job.lacking)
    for name in reversed(list(pieces)):
        if name in names and name not in job.before:
            names.update(pieces[name].needs)
    return [name for name in pieces if name in names and name not in job.before]


def beforehand(pieces: Any, job: Job) -> Sequence[str]:
    """Those of them that are a function of images and seed alone, and kept by nobody: corrupted images."""
    own = ((name, pieces[name]) for name in asked(pieces, job))
    return [name for name, piece in own if piece.networks == () and not (piece.needs or piece.kept or is_rows(piece))]


def one_chunk(data: Dataset, number: int, chunk: int, total: int, limit: int | None) -> Batch:
    """One chunk alone."""
    place = Place(number, -(-total // chunk))
    return next(iter(data.validation_batches(place, chunk, limit)))


_own: tuple[Dataset, Task]  # of a process that reads ahead


def _begin(carried: Carried) -> None:
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; it ends its processes
    torch.set_num_threads(1)
    _own = carried.value


@lru_cache(maxsize=1)  # a chunk's corruptions come one after the other
def _read(on: str, number: int) -> Batch:
    data, task = _own
    data = next((piece.data for piece in task.pieces.values() if piece.on == on and piece.data is not None), data)
    if is_dataclass(data) and "workers" in {field.name for field in fields(data)}:
        data = replace(data, workers=0)  # this process is one of them  # type: ignore[type-var,call-arg]
    return one_chunk(data, number, task.evaluator.chunk, task.totals[on], task.evaluator.images)


def _made(on: str, number: int, name: str | None) -> bytes:
    """Pickled here: torch would hand over a descriptor for each tensor, and descriptors are few."""
    batch = _read(on, number)
    if name is None:
        return pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
    _, task = _own
    piece = task.pieces[name]
    rows = first(batch.to("cpu"), piece)
    found = task.evaluator.judge({}, rows, piece, {}, Key(task.seed)) if len(rows) else {}
    return pickle.dumps({what: Lean(tensor) for what, tensor in found.items()}, pickle.HIGHEST_PROTOCOL)


def first(batch: Batch, piece: Piece) -> Batch:
    """The rows of a chunk that a piece is made on."""
    return batch if piece.images is None else batch[: int((batch.position < piece.images).sum())]


class Lean:
    """A tensor on its way: grey levels k / 255 as bytes, a quarter of them, and to the bit what they were."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.scaled = tensor.contiguous(), False
        if tensor.dtype == torch.float32 and tensor.numel():
            levels = (tensor * 255).round().clamp(0, 255).to(torch.uint8)
            if torch.equal(levels.to(torch.float32) / 255, tensor):
                self.tensor, self.scaled = levels, True

    def to(self, device: str) -> Tensor:
        """As it was, on a device."""
        moved = self.tensor.to(device)
        return moved.to(torch.float32) / 255 if self.scaled else moved
