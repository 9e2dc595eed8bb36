"""The work of an evaluation under corruptions: every cell on every chunk, and what is kept of it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train.data.corruptions import SEVERITIES
from robust_train.data.corruptions.benchmark import parameters
from robust_train.data.corruptions.weather import FORMATS, TEXTURES, texture
from robust_train.data.stored_corruptions import StoredCorruption
from robust_train.disk import checksum
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.corruptions import Cell, Robustness, corrupted
from robust_train.evaluate.files import Files
from robust_train.evaluate.work import Piece
from robust_train.keyed import Key
from robust_train.nouns import Batch, Dataset, Place
from robust_train.read.errors import ConfigError

CLEAN = "clean"


@dataclass(frozen=True)
class Course:
    """All that decides verdicts under corruptions beside the network and the clean images."""

    corruptions: tuple[str, ...]  # in the benchmark's order
    chunk: int = 256  # consecutive images judged together
    images: int | None = None  # the first so many; of stored folders so many, evenly over the set; None: all
    seed: int = 0  # of what is drawn
    frost: str | None = None  # the folder of its textures
    stored: StoredCorruption | None = None  # corrupted images as published; None: the clean ones are corrupted

    @property
    def cells(self) -> dict[str, Cell]:
        """Each corruption at each severity, by the name of its pieces: fog/3."""
        return {f"{name}/{severity}": (name, severity) for name in self.corruptions for severity in SEVERITIES}

    def check(self, size: int, flag: str) -> None:
        """Raises ConfigError or DataError for what could not be made of images of `size`: before any work, not in it.

        flag: what names the folder of frost's textures, for the message.
        """
        if self.stored is not None:
            return
        for name in self.corruptions:
            parameters(name, size, 1)
        if "frost" not in self.corruptions:
            return
        if self.frost is None:
            raise ConfigError(
                f"frost needs textures: {flag} with frost1 to frost5 (.png, .jpg or .webp), as in "
                "ImageNet-C/imagenet_c/imagenet_c/frost of github.com/hendrycks/robustness; or leave it out, as in "
                "noise,blur,digital,snow,fog,brightness"
            )
        for name in TEXTURES:
            texture(self.frost, name, parameters("frost", size, 1)[2])

    def pieces(self, data: Dataset) -> Iterator[tuple[Piece, int]]:
        """Every piece, and the images in it, broken ones included."""
        for name in (CLEAN, *self.cells):
            for number, count in self._chunks(data if self.stored is None or name == CLEAN else self._at(name)):
                yield (number, name), count

    def work(
        self, network: Any, data: Dataset, place: Place, done: Mapping[Piece, Tensor]
    ) -> Iterator[tuple[Piece, Tensor]]:
        """The verdicts [n] bool on each of this place's pieces, as they come; pieces in `done` are not redone.

        A piece is a function of the network, the images and the course alone: of no device, rank or earlier run.
        """
        key = Key(self.seed)
        for at, batch in self.batches(data, place, done):
            yield at, self._right(network, batch, at[1], key).cpu()

    def batches(self, data: Dataset, place: Place, done: Container[Piece]) -> Iterator[tuple[Piece, Batch]]:
        """Each of this place's pieces that is not in `done`, with its sound images on the device: see `seen`."""
        made = [] if self.stored is not None else list(self.cells)
        yield from self._batches(data, [CLEAN, *made], place, done)
        for name in self.cells if self.stored is not None else ():
            yield from self._batches(self._at(name), [name], place, done)

    def seen(self, batch: Batch, name: str, key: Key) -> Batch:
        """What networks see of a piece's images: the clean ones corrupted, clean and stored ones as they are."""
        if name == CLEAN or self.stored is not None:
            return batch
        return corrupted(batch, *self.cells[name], key, self.frost)

    def robustness(self, found: Mapping[Piece, Tensor], size: int) -> Robustness:
        """What the verdicts on pieces come to. size: side of the images in pixels."""
        sums: dict[str, tuple[int, int]] = {}
        for (_, name), right in found.items():
            held, images = sums.get(name, (0, 0))
            sums[name] = (held + int(right.sum()), images + len(right))
        cells = {cell: sums[name] for name, cell in self.cells.items() if sums.get(name, (0, 0))[1]}
        return Robustness(cells, sums.get(CLEAN), size)

    def on(self, clean: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the images: networks judged on the same of these may be compared. clean: of the data."""
        found: dict[str, Any] = {**clean, "images": self.images, "seed": self.seed}
        if self.frost is not None:
            files = (Path(self.frost) / f"{name}{ending}" for name in TEXTURES for ending in FORMATS)
            found["frost"] = {path.name: checksum(path) for path in files if path.is_file()}
        if self.stored is not None:
            sums: dict[str, str] = {}
            for name, severity in self.cells.values():
                sums |= {} if f"{name}.npy" in sums else self.stored.at(name, severity).checksums()
            found["stored"] = sums
        return found

    def stamps(self) -> dict[str, str]:
        """Of the published images: what decides verdicts beside `on`."""
        if self.stored is None:
            return {}
        each = {name: self.stored.at(*cell).stamp() for name, cell in self.cells.items()}
        return {name: stamp for name, stamp in each.items() if stamp}

    def shared(self, on: Mapping[str, Any]) -> dict[str, Any]:
        """Of `on`, what every piece has in common: of folders a limit takes other images, evenly over the set."""
        return dict(on) if self.stored is not None else {**on, "images": None}

    def _batches(
        self, data: Dataset, names: list[str], place: Place, done: Container[Piece]
    ) -> Iterator[tuple[Piece, Batch]]:
        mine = [number for number, _ in self._chunks(data) if number % place.world == place.rank]
        if all((number, name) in done for number in mine for name in names):
            return  # nothing is decoded in vain
        for number, raw in place.numbered(data.validation_batches(place, self.chunk, self.images)):
            lacking = [name for name in names if (number, name) not in done]
            batch = raw.to(place.device) if lacking else raw
            for name in lacking:
                yield (number, name), batch

    def _right(self, network: Any, batch: Batch, name: str, key: Key) -> Tensor:
        if not len(batch):
            return torch.zeros(0, dtype=torch.bool)
        return verdicts(network, self.seen(batch, name, key), None, key)[0].bool()

    def _at(self, name: str) -> StoredCorruption:
        assert self.stored is not None
        return self.stored.at(*self.cells[name])

    def _chunks(self, data: Dataset) -> list[tuple[int, int]]:
        """(number, images) of each chunk."""
        size = data.validation_size()
        images = size if self.images is None else min(self.images, size)
        return [(first // self.chunk, min(self.chunk, images - first)) for first in range(0, images, self.chunk)]


def judge(
    network: Any, data: Dataset, course: Course, place: Place, done: Mapping[Piece, Tensor]
) -> Iterator[tuple[Piece, Tensor]]:
    """`course.work`, for another process."""
    return course.work(network, data, place, done)


class Kept:
    """Verdicts of a network that are there, in `Files`: the same evaluation goes on from there.

    Which corruptions are asked for, and how many images, is not in the digest: what is there is taken.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], course: Course, data: Dataset) -> None:
        self.course = course
        self.counts = dict(course.pieces(data))
        self.done: dict[Piece, Tensor] = {}
        self.files = Files(folder, header, self.counts)
        self.folder = self.files.folder

    def resume(self) -> int:
        """Read what is there, and the number of pieces read."""
        self.done |= {at: found["right"] for at, found in self.files.read() if "right" in found}
        return len(self.done)

    def put(self, at: Piece, found: Tensor) -> None:
        """Keep a piece."""
        self.done[at] = found
        self.files.write(at, {"right": found.contiguous()})

    @property
    def share(self) -> float:
        """Of the images to be judged, each once a cell, those that were."""
        return sum(self.counts[at] for at in self.done) / max(sum(self.counts.values()), 1)

    def robustness(self, size: int) -> Robustness:
        """What the verdicts come to. size: side of the images in pixels."""
        return self.course.robustness(self.done, size)
