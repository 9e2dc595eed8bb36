"""The work of an evaluation under corruptions: every cell on every chunk, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from robust_train.data.corruptions import SEVERITIES
from robust_train.data.manifest import write_whole
from robust_train.data.stored_corruptions import StoredCorruption
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.corruptions import Cell, Robustness, right
from robust_train.evaluate.work import Piece
from robust_train.keyed import Key
from robust_train.nouns import Batch, Dataset, Place

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
        made = [] if self.stored is not None else list(self.cells)
        yield from self._judged(network, data, [CLEAN, *made], place, done)
        for name in self.cells if self.stored is not None else ():
            yield from self._judged(network, self._at(name), [name], place, done)

    def _judged(
        self, network: Any, data: Dataset, names: list[str], place: Place, done: Mapping[Piece, Tensor]
    ) -> Iterator[tuple[Piece, Tensor]]:
        mine = [number for number, _ in self._chunks(data) if number % place.world == place.rank]
        if all((number, name) in done for number in mine for name in names):
            return  # nothing is decoded in vain
        key = Key(self.seed)
        for raw in data.validation_batches(place, self.chunk, self.images):
            number = int(raw.position[0]) // self.chunk
            lacking = [name for name in names if (number, name) not in done]
            sound = raw[raw.extra["broken"] == 0] if "broken" in raw.extra else raw
            batch = sound.to(place.device) if lacking else sound
            for name in lacking:
                yield (number, name), self._right(network, batch, name, key).cpu()

    def _right(self, network: Any, batch: Batch, name: str, key: Key) -> Tensor:
        if not len(batch):
            return torch.zeros(0, dtype=torch.bool)
        if name == CLEAN or self.stored is not None:
            return verdicts(network, batch, None, key)[0].bool()
        return right(network, batch, *self.cells[name], key, self.frost)

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
    """Verdicts that are there, in a folder that a kill cannot break: the same evaluation goes on from there.

    folder/DIGEST/ holds header.json, which says what the digest is of, and a safetensors file for each piece, whole or
    absent. Which corruptions are asked for, and how many images, is not in the digest: what is there is taken.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], course: Course, data: Dataset) -> None:
        text = json.dumps(header, indent=1, sort_keys=True, ensure_ascii=False)
        self.course = course
        self.counts = dict(course.pieces(data))
        self.done: dict[Piece, Tensor] = {}
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        write_whole(self.folder / "header.json", lambda file: file.write((text + "\n").encode()))

    def resume(self) -> int:
        """Read what is there, and the number of pieces read; a file that cannot be read is made again."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        for at in self.counts:
            path = self._path(at)
            if path.name in there:
                try:
                    self.done[at] = load_file(path)["right"]
                except (SafetensorError, KeyError, OSError):
                    path.unlink(missing_ok=True)
        return len(self.done)

    def put(self, at: Piece, found: Tensor) -> None:
        """Keep a piece."""
        self.done[at] = found
        write_whole(self._path(at), lambda file: file.write(save({"right": found.contiguous()})))

    @property
    def share(self) -> float:
        """Of the images to be judged, each once a cell, those that were."""
        return sum(self.counts[at] for at in self.done) / max(sum(self.counts.values()), 1)

    def robustness(self, size: int) -> Robustness:
        """What the verdicts come to. size: side of the images in pixels."""
        sums: dict[str, tuple[int, int]] = {}
        for (_, name), found in self.done.items():
            held, images = sums.get(name, (0, 0))
            sums[name] = (held + int(found.sum()), images + len(found))
        cells = {cell: sums[name] for name, cell in self.course.cells.items() if sums.get(name, (0, 0))[1]}
        return Robustness(cells, sums.get(CLEAN), size)

    def _path(self, at: Piece) -> Path:
        """A piece's file; a chunk that a limit cut is another piece."""
        number, name = at
        return self.folder / f"{number:05d}-{name.replace('/', '-')}-{self.counts[at]}.safetensors"
