"""Each batch several times over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robust_train.nouns import Batch, Dataset, Extra, Place, Scale, Shape
from robust_train.read.registry import datasets


@datasets.register("repeated")
@dataclass(frozen=True)
class Repeated(Dataset):
    """Another set, each of whose batches comes `times` times in a row, augmented alike: update u has batch u // times.

    For training that takes several steps a batch (free adversarial training). All else is the other set's.
    """

    of: Dataset  # the set
    times: int  # updates a batch

    examples = "- {of: digits, times: 2}"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times={self.times} must be at least 1: it counts updates a batch")

    def contents(self) -> Any:
        """The set's."""
        return self.of.contents()

    def preprocessing(self) -> list[str]:
        """The set's."""
        return self.of.preprocessing()

    @property
    def classes(self) -> int:
        """The set's."""
        return self.of.classes

    @property
    def shape(self) -> Shape:
        """The set's."""
        return self.of.shape

    @property
    def scale(self) -> Scale:
        """The set's."""
        return self.of.scale

    @property
    def extra(self) -> Mapping[str, Extra]:
        """The set's."""
        return self.of.extra

    @property
    def views(self) -> int:
        """The set's."""
        return self.of.views

    @property
    def beside(self) -> Dataset | None:
        """The set's."""
        return self.of.beside

    @property
    def missing(self) -> int:
        """Broken samples that the set allows."""
        return getattr(self.of, "missing", 0)

    def prepare(self) -> None:
        """The set's."""
        self.of.prepare()

    def check(self) -> None:
        """The set's."""
        self.of.check()

    def train_size(self) -> int:
        """The set's."""
        return self.of.train_size()

    def validation_size(self) -> int:
        """The set's."""
        return self.of.validation_size()

    def names(self) -> list[str]:
        """The set's."""
        return self.of.names()

    def checksums(self) -> dict[str, str]:
        """The set's."""
        return self.of.checksums()

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """The set's from batch start // times on, each as often as is left of it."""
        stream = self.of.batches(place, batch, seed, start // self.times)
        left = self.times - start % self.times
        try:
            for drawn in stream:
                for _ in range(left):
                    yield drawn
                left = self.times
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()  # what reads ahead ends with who asked for it

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """The set's."""
        return self.of.validation_batches(place, chunk, limit)
