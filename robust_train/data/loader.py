"""From tasks to batches: decoding and augmentation, in this process or in workers, in order and the same either way."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from robust_train.data.augment import ImageAugmentation, built
from robust_train.data.decode import Undecodable, decode, fit, numbers, pixels
from robust_train.data.samples import Record
from robust_train.keyed import Key
from robust_train.nouns import Batch, Extra, Place
from robust_train.read.errors import DataError

AHEAD = 2  # tasks that each worker holds ready


class Refusal(Exception):
    """A shard and what is wrong with it that no allowance covers: (shard, message)."""


class Source(Protocol):
    """Where undecoded samples come from."""

    def record(self, sample: int) -> Record:
        """A sample by its number."""

    def after(self, record: Record) -> Iterator[Record]:
        """The other samples of a record's shard, from the next one on."""


@dataclass(frozen=True)
class Task:
    """What is decoded at once: one rank's share of a global batch.

    position, sample: int64 [n]. seed: of the epoch's augmentation. records: the samples, where they were read already.
    """

    position: np.ndarray
    sample: np.ndarray
    seed: int
    records: tuple[Record, ...] | None = None


def evenly(place: Place, chunk: int, total: int, limit: int | None) -> Generator[Task, None, None]:
    """A rank's chunks of `chunk` samples, chunk i to rank i mod world; of more than `limit` so many, evenly."""
    images = total if limit is None else min(limit, total)
    chosen = np.arange(images) * total // max(images, 1)
    for first in range(place.rank * chunk, images, place.world * chunk):
        position = np.arange(first, min(first + chunk, images))
        yield Task(position, chosen[position], 0)


@dataclass(frozen=True)
class Decoded:
    """A task done. faults: what was wrong, by sample; broken [n]: 1 where another sample stands in for such a one.

    broken is None where such rows are left out.
    """

    images: Tensor
    targets: Tensor
    position: Tensor
    sample: Tensor
    extra: dict[str, Tensor]
    views: tuple[Tensor, ...]  # after the first, which is `images`
    broken: Tensor | None
    faults: dict[int, tuple[int, str]]  # sample -> (shard, what is said of it)

    def sound(self) -> Decoded:
        """Without the rows of broken samples."""
        assert self.broken is not None, "it knows which are broken"
        whole = self.broken == 0
        return Decoded(
            self.images[whole],
            self.targets[whole],
            self.position[whole],
            self.sample[whole],
            {name: value[whole] for name, value in self.extra.items()},
            tuple(view[whole] for view in self.views),
            None,
            self.faults,
        )

    def pin_memory(self) -> Decoded:
        """The same in page-locked memory; called by torch's loader."""
        return Decoded(
            self.images.pin_memory(),
            self.targets.pin_memory(),
            self.position.pin_memory(),
            self.sample.pin_memory(),
            {name: value.pin_memory() for name, value in self.extra.items()},
            tuple(view.pin_memory() for view in self.views),
            None if self.broken is None else self.broken.pin_memory(),
            self.faults,
        )


@dataclass(frozen=True)
class Decoder:
    """Tasks to images. Holds no state that its results depend on, so any number of copies may share the work.

    In training a broken sample's place is taken by the next good sample of its shard, whoever finds it broken and
    wherever; in evaluation it is left out: nothing stands for what is judged.
    """

    source: Source
    augment: ImageAugmentation | None  # None: as evaluation sees images
    size: int
    channels: int
    crop: float
    classes: int
    stand_ins: dict[int, Record] = field(default_factory=dict, compare=False)  # found before; a copy finds the same
    bilinear: bool = False  # resizing for evaluation, else bicubic
    extra: Mapping[str, Extra] = field(default_factory=dict)  # what each sample carries beside, by name
    views: int = 1  # augmented ones of each sample

    def __getitem__(self, task: Task) -> Decoded | Refusal:
        """A task done. A refusal is handed over, not raised: a worker's exceptions arrive as text with tracebacks."""
        try:
            with generators_restored(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of odd files that it reads well
                return self._done(task)
        except Refusal as refusal:
            return refusal

    def _done(self, task: Task) -> Decoded:
        count = len(task.sample)
        views = torch.empty(self.views, count, self.channels, self.size, self.size, dtype=torch.uint8)
        targets, broken = torch.empty(count, dtype=torch.int64), torch.zeros(count)
        extra = {name: _empty(count, said) for name, said in self.extra.items()}
        faults: dict[int, tuple[int, str]] = {}
        for row, sample in enumerate(task.sample.tolist()):
            record = self.source.record(sample) if task.records is None else task.records[row]
            try:
                image, carried = self.whole(record)
            except Undecodable as error:
                broken[row] = 1
                faults[sample] = record.shard, f"sample {record.key} {error}"
                if self.augment is None:
                    continue
                record, image, carried = self.stand_in(sample, record)
            if not 0 <= record.label < self.classes:
                raise Refusal(record.shard, label_refusal(record, self.classes))
            key = Key(task.seed).at(sample)
            for view in range(self.views):  # the first is drawn as the only one is
                views[view, row] = self.finished(image, (key.of("view").at(view) if view else key).seed)
            targets[row] = record.label
            for name, value in carried.items():
                extra[name][row] = value
        position, ids = torch.from_numpy(task.position), torch.from_numpy(task.sample)
        found = Decoded(views[0], targets, position, ids, extra, tuple(views[1:]), broken, faults)
        return found if self.augment is not None else found.sound()

    def whole(self, record: Record) -> tuple[Image, dict[str, Tensor]]:
        """The image of a record and what it carries. Undecodable, with the reason, where either is broken."""
        image, carried = self.decoded(record), {}
        for name, said in self.extra.items():
            try:
                carried[name] = numbers(record.extra[name] or b"", said)
            except Undecodable as error:
                raise Undecodable(f"has a .{name}.npy that {error}") from error
        return image, carried

    def decoded(self, record: Record) -> Image:
        """The image of a record. Undecodable, with the reason, where the record is broken in any way."""
        if record.fault or record.image is None:
            raise Undecodable(record.fault)
        try:
            return decode(record.image, self.channels)
        except Undecodable as error:
            raise Undecodable(f"cannot be decoded ({error})") from error

    def finished(self, image: Image, seed: int) -> Tensor:
        """uint8 [C, size, size]: augmented under the seed, or as evaluation sees it."""
        if self.augment is None:
            return pixels(fit(image, self.size, self.crop, self.bilinear))
        seed_generators(seed)
        return built(self.augment, self.size, self.channels, self.crop)(image)

    def stand_in(self, sample: int, record: Record) -> tuple[Record, Image, dict[str, Tensor]]:
        """The next good sample of the shard."""
        for other in [self.stand_ins[sample]] if sample in self.stand_ins else self.source.after(record):
            try:
                image, carried = self.whole(other)
            except Undecodable:
                continue
            self.stand_ins[sample] = other
            return other, image, carried
        raise Refusal(record.shard, "holds no sample that can be decoded. Rewrite it, or leave it out of data.train.")


class Allowance:
    """Broken samples seen so far, each counted once, and how many may be.

    Each rank counts the samples that it has met itself, besides those that the index names.
    """

    def __init__(self, missing: int, total: int, known: Iterable[tuple[int, str]] = ()) -> None:
        self.missing, self.total, self.seen = missing, total, set[int]()
        for sample, fault in known:
            self.add(sample, fault)

    def add(self, sample: int, fault: str) -> None:
        """Count a broken sample. DataError, with its fault, where that is one too many."""
        self.seen.add(sample)
        if len(self.seen) > self.missing:
            raise DataError(
                f"{fault}. {len(self.seen):,} of {self.total:,} samples are broken as far as is known; rewrite the "
                f"shard, or allow them with data.missing={len(self.seen)} (now {self.missing})."
            )


def batches(
    decoder: Decoder,
    tasks: Generator[Task, None, None],
    place: Place,
    workers: int,
    name: Callable[[int], str],
    allowance: Allowance,
) -> Iterator[Batch]:
    """Tasks to batches, in the order of the tasks; by worker processes where `workers` > 0. name: of a shard.

    Raises DataError, naming shard and sample, for a label out of range, a shard without a good sample, or more broken
    samples than are allowed.
    """
    try:
        for result in _in_workers(decoder, tasks, place, workers) if workers else map(decoder.__getitem__, tasks):
            if isinstance(result, Refusal):
                shard, message = result.args
                raise DataError(f"shard {name(shard)} {message}")
            for sample, (shard, fault) in result.faults.items():
                allowance.add(sample, f"shard {name(shard)}: {fault}")
            yield Batch(
                result.images,
                result.targets,
                result.position,
                result.sample,
                result.extra,
                result.views,
                result.broken,
            )
    finally:
        tasks.close()  # what reads ahead ends with who asked for it


def _empty(count: int, said: Extra) -> Tensor:
    return torch.empty(count, *said.shape, dtype=torch.int64 if said.whole else torch.float32)


def label_refusal(record: Record, classes: int) -> str:
    """What is said of a label out of range."""
    return (
        f"holds sample {record.key} with label {record.label}, but labels run from 0 to {classes - 1}. "
        f"Correct data.classes (now {classes}), or rewrite the shard."
    )


@contextmanager
def generators_restored() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators as they were before; augmentations draw from all three."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


def seed_generators(seed: int) -> None:
    """Set all three from one 64-bit seed."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def _in_workers(decoder: Decoder, tasks: Iterable[Task], place: Place, workers: int) -> Iterator[Decoded | Refusal]:
    from torch.utils.data import DataLoader

    # fork is a hazard beside the threads of Ray and gloo; spawn imports everything anew for each worker
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__])
    loader: DataLoader[Decoded | Refusal] = DataLoader(
        decoder,  # type: ignore[arg-type]
        batch_size=None,  # a task is a batch already
        sampler=tasks,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=AHEAD,
        multiprocessing_context=start,
        worker_init_fn=_begin_worker,
        pin_memory=place.device.startswith("cuda"),
        generator=torch.Generator(),  # else the loader draws from the global one
    )
    yield from loader


def _as_it_is(result: Any) -> Any:
    return result


def _begin_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; it ends its workers
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End with the process that the work is for, however that ended: the fork server ends when its last worker has."""
    wait([sentinel])
    os._exit(0)
