"""Two data sets at once: a task, and samples of another set that come along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from robust_train.keyed import Key
from robust_train.nouns import Batch, Dataset, Extra, Place, Scale, Shape
from robust_train.read.registry import datasets


@datasets.register("beside")
@dataclass(frozen=True)
class Beside(Dataset):
    """A task, and beside each batch of it one as large of another set: pictures with the responses of neurons to them.

    `Batch.beside` holds the other set's samples, row by row: its rank's share, its part of a micro-batch. Which they
    are is a function of (seed, update), drawn apart from the task's, at any world size; its epochs are its own. All
    else (classes, shape, validation) is the task's.
    """

    task: Dataset  # what the network learns and is judged on
    other: Dataset  # what comes along: {use: shards, labelled: false, extra: {resp: {shape: [89]}}, ...}

    examples = "- {task: {use: digits}, other: {use: shards, train: other.tar, classes: 10, size: 8, channels: 1}}"

    @property
    def classes(self) -> int:
        """The task's."""
        return self.task.classes

    @property
    def shape(self) -> Shape:
        """The task's."""
        return self.task.shape

    @property
    def scale(self) -> Scale:
        """The task's."""
        return self.task.scale

    @property
    def extra(self) -> Mapping[str, Extra]:
        """The task's."""
        return self.task.extra

    @property
    def views(self) -> int:
        """The task's."""
        return self.task.views

    @property
    def beside(self) -> Dataset:
        """The other set."""
        return self.other

    @property
    def missing(self) -> int:
        """Broken samples that the task allows, which metrics count. The other set has a count of its own."""
        return getattr(self.task, "missing", 0)

    def preprocessing(self) -> list[str]:
        """The task's: the other set has no validation."""
        return self.task.preprocessing()

    def prepare(self) -> None:
        """Both."""
        self.task.prepare()
        self.other.prepare()

    def check(self) -> None:
        """Both."""
        self.task.check()
        self.other.check()

    def train_size(self) -> int:
        """The task's."""
        return self.task.train_size()

    def validation_size(self) -> int:
        """The task's."""
        return self.task.validation_size()

    def names(self) -> list[str]:
        """The task's."""
        return self.task.names()

    def checksums(self) -> dict[str, str]:
        """Both sets', the other's as beside/NAME."""
        return {**self.task.checksums(), **{f"beside/{name}": sum for name, sum in self.other.checksums().items()}}

    def known(self) -> dict[str, str]:
        return {**self.task.known(), **{f"beside/{name}": sum for name, sum in self.other.known().items()}}

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """The task's, each with as many of the other set."""
        apart = Key(seed).of("beside").seed % 2**31
        streams = self.task.batches(place, batch, seed, start), self.other.batches(place, batch, apart, start)
        try:
            for task, other in zip(*streams, strict=False):
                yield replace(task, beside=other)
        finally:
            for stream in streams:
                close = getattr(stream, "close", None)
                if close is not None:
                    close()  # what reads ahead ends with who asked for it

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """The task's."""
        return self.task.validation_batches(place, chunk, limit)
