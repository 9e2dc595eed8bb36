"""Image files below a folder and samples of shards, by key; those that are judged, and how they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from os import stat
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from robust_train.data.decode import Undecodable, centred, pixels
from robust_train.data.files.folders import images_below
from robust_train.data.indexed import Indexed
from robust_train.data.loader import Decoder
from robust_train.data.samples import NO_LABEL, NOT_A_LABEL, Record
from robust_train.disk import digest
from robust_train.read.errors import DataError


@dataclass(frozen=True)
class Pictures:
    """Image files by number. A key is the file's name from the folder on, "n01440764/one.JPEG"."""

    place: Path
    keys: tuple[str, ...]

    @classmethod
    def below(cls, place: Path) -> Pictures:
        """Those below a folder, sorted by name. DataError where there are none, or where one of them cannot be read."""
        found = images_below(place).sure()
        keys = tuple(path.relative_to(place).as_posix() for path in found.files)
        if not keys:
            raise DataError("; ".join([f"{place} holds no images", *found.said()]) + ". Name the folder that does.")
        return cls(place, keys)

    def record(self, sample: int) -> Record:
        """An image by its number: one read of its file. It says no label."""
        key = self.keys[sample]
        return Record(0, sample, key, (self.place / key).read_bytes(), NO_LABEL)

    def after(self, record: Record) -> Iterator[Record]:
        """The other images, from the next one on, round to the one before it."""
        for step in range(1, len(self.keys)):
            yield self.record((record.number + step) % len(self.keys))

    @cached_property
    def sums(self) -> tuple[str, str]:
        """sha256 of the images' names and bytes, and of their names and when they were written; one look at each.

        The second is another where an image was replaced by one as large.
        """
        facts = [(key, stat(f"{self.place}/{key}")) for key in self.keys]
        sizes = "\n".join(f"{key} {fact.st_size}" for key, fact in facts)
        return digest(sizes), digest("\n".join(f"{key} {fact.st_mtime_ns}" for key, fact in facts))


def labelled(source: Pictures | Indexed) -> Iterator[tuple[str, int | None]]:
    """Key and label of every image, None where it says none; no image is read."""
    if isinstance(source, Pictures):
        yield from ((key, None) for key in source.keys)
        return
    for _, rows in source.table.blocks():
        for key, label in zip(rows["key"].tolist(), rows["label"].tolist(), strict=True):
            yield key.decode(), None if label in (NO_LABEL, NOT_A_LABEL) else label


@dataclass(frozen=True)
class Answered:
    """The images that are judged, of those that lie there, each with its right classes, ascending."""

    source: Pictures | Indexed
    numbers: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def record(self, sample: int) -> Record:
        """An image by its number among those judged; the least of its classes is its label."""
        return replace(self.source.record(self.numbers[sample]), label=self.answers[sample][0])

    def after(self, record: Record) -> Iterator[Record]:
        """Others, to stand in its place where it is broken; such rows are not judged."""
        return (replace(other, label=record.label) for other in self.source.after(record))


@dataclass(frozen=True)
class Centred(Decoder):
    """Decoding as timm evaluates, after `border` pixels have been cut off each side."""

    border: int = 0

    def decoded(self, record: Record) -> Image:
        """The image of a record without its border. Undecodable where nothing is left of it."""
        image = super().decoded(record)
        edge, (width, height) = self.border, image.size
        if min(width, height) <= 2 * edge:
            raise Undecodable(f"is {width}x{height} pixels, no more than its border of {edge}")
        return image.crop((edge, edge, width - edge, height - edge)) if edge else image

    def finished(self, image: Image, seed: int) -> Tensor:
        """uint8 [C, size, size]."""
        return pixels(centred(image, self.size, self.crop, self.bilinear))
