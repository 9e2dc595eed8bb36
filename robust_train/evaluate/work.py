"""The work of an evaluation: every trial on every chunk, wherever it is done, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from robust_train import disk
from robust_train.evaluate.trial import Column, Trial, tried
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.nouns import Batch, Place
from robust_train.read.parse import tree_of

SHOWN = 2  # images a chunk and trial whose points are kept for pictures: of the fallen and of the standing


@dataclass(frozen=True)
class Found:
    """What one trial found on one chunk."""

    sample: Tensor  # [n] identities in the data set
    labels: Tensor  # [n]
    column: Column
    shown: Tensor  # [s] rows whose points are kept: most confidently wrong, and nearest to fall
    pixels: Tensor  # [2, s, ...] uint8: those images and their points, for pictures
    points: Tensor | None = None  # [n, ...] all points, where they are to be saved

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a file."""
        columns = {"right": self.column.right, "margin": self.column.margin, "distance": self.column.distance}
        own = {"sample": self.sample, "labels": self.labels, "shown": self.shown, "pixels": self.pixels}
        whole = {} if self.points is None else {"points": self.points}
        whole |= {} if self.column.told is None else {"told": self.column.told}
        return {name: t.contiguous() for name, t in {**own, **columns, "steps": self.column.steps, **whole}.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Found:
        """What `tensors` gave."""
        column = Column(*(tensors[name] for name in ("right", "margin", "distance", "steps")))
        column = replace(column, told=tensors.get("told"))
        sample, labels, shown, pixels = (tensors[name] for name in ("sample", "labels", "shown", "pixels"))
        return cls(sample, labels, column, shown, pixels, tensors.get("points"))


Piece = tuple[int, str]
"""A chunk's number and a trial's name."""


@dataclass(frozen=True)
class Plan:
    """All that decides an evaluation's verdicts beside the network and the data."""

    trials: tuple[Trial, ...]  # each after those it names
    classes: int  # of the network
    chunk: int  # consecutive images attacked together
    images: int | None = None  # the first so many; None: all
    seed: int = 0  # of all draws
    draws: int = 1  # passes of a verdict, for a network with randomness of its own
    points: bool = False  # keep every point of the figures' trials

    def keeps(self, trial: Trial) -> bool:
        """Whether all points of a trial are kept."""
        return self.points and trial.role in ("clean", "attack")

    def of(self, role: str, threat: str) -> list[Trial]:
        """The trials of one role in one threat model."""
        return [trial for trial in self.trials if trial.role == role and trial.threat == threat]


def work(
    network: Any, data: Any, plan: Plan, place: Place, done: Mapping[Piece, Found]
) -> Iterator[tuple[Piece, Found]]:
    """What each trial finds on each of this place's chunks, in order, as it comes; pieces in `done` are not redone.

    A piece is a function of the network, the chunk and the plan alone: of no device, rank or earlier run.
    """
    key = Key(plan.seed)
    for number, raw in place.numbered(data.validation_batches(place, plan.chunk, plan.images)):
        columns: dict[str, Column] = {}
        batch: Batch | None = None
        for trial in plan.trials:
            first = len(raw) if trial.images is None else int((raw.position < trial.images).sum())
            if not first:
                continue
            if (number, trial.name) not in done:
                batch = raw.to(place.device) if batch is None else batch
                before = [columns[name] for name in trial.after] if trial.attack is not None else []
                cut = [column[:first] for column in before]
                found = piece(network, batch[:first], trial, cut, key, plan)
                yield (number, trial.name), found
            else:
                found = done[number, trial.name]
            columns[trial.name] = found.column


def piece(network: Any, batch: Batch, trial: Trial, before: list[Column], key: Key, plan: Plan) -> Found:
    """One trial on one chunk."""
    column, points = tried(network, batch, trial, before, key, plan.draws)
    attacked = ~column.margin.isnan()
    order = column.margin.nan_to_num(torch.inf).argsort()
    fallen, stands = order[(attacked & ~column.stands)[order]], order[(attacked & column.stands)[order]]
    shown = torch.cat([fallen[:SHOWN], stands[:SHOWN]])
    rows = shown.to(points.device)
    pixels = torch.stack([batch.images[rows], points[rows]]).mul(255).round().to(torch.uint8).cpu()
    labels = labels_of(batch.targets)
    kept = points.float().cpu() if plan.keeps(trial) else None
    return Found(batch.sample.cpu(), labels.cpu(), column, shown, pixels, kept)


class Store:
    """Pieces that are done, in a folder that a kill cannot break: evaluations of the same network go on from there.

    folder/DIGEST/ holds header.json, which says what the digest is of (network, data, versions, chunk, seed), and a
    safetensors file for each piece, whole or absent. A piece's name holds a digest of its attack, of those before it
    and of the images it is made on: another plan takes from the folder what it has in common with earlier ones.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], plan: Plan) -> None:
        self.plan, self.folder = plan, None
        self.done: dict[Piece, Found] = {}
        if folder is None:
            return
        header = {**identity, "chunk": plan.chunk, "seed": plan.seed, "draws": plan.draws}
        text = json.dumps(header, indent=1, sort_keys=True, ensure_ascii=False)
        self.folder = folder / disk.digest(text)[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.write_text(self.folder / "header.json", text + "\n")

    def resume(self) -> int:
        """Read what is there of the plan, and the number of pieces read; a file that cannot be read is made again."""
        there = {path.name for path in self.folder.glob("*.safetensors")} if self.folder else set()
        numbers = sorted({int(name[:5]) for name in there if name[:5].isdigit()})
        trials = {trial.name: trial for trial in self.plan.trials}
        for at in ((number, name) for number in numbers for name in trials):
            path = self._path(at)
            if path is not None and path.name in there:
                try:
                    found = Found.of(load_file(path))
                except (SafetensorError, KeyError, OSError):
                    path.unlink(missing_ok=True)
                    continue
                if found.points is not None or not self.plan.keeps(trials[at[1]]):
                    self.done[at] = found
        return len(self.done)

    def put(self, at: Piece, found: Found) -> None:
        """Keep a piece."""
        self.done[at] = found
        path = self._path(at)
        if path is not None:
            disk.write_bytes(path, save(found.tensors()))

    def _path(self, at: Piece) -> Path | None:
        """A piece's file."""
        number, name = at
        if self.folder is None:
            return None
        trials = {trial.name: trial for trial in self.plan.trials}
        trial = trials[name]
        limits = [limit for limit in (trial.images, self.plan.images) if limit is not None]
        images = min([self.plan.chunk, *(limit - number * self.plan.chunk for limit in limits)])
        chain = [(one, tree_of(trials[one].attack)) for one in (*trial.after, name)]
        digest = disk.digest(json.dumps([chain, images], sort_keys=True))[:12]
        return self.folder / f"{number:05d}-{name.replace('/', '_')}-{digest}.safetensors"

    def verdicts(self) -> Verdicts:
        """Everything that was found, chunk after chunk."""
        trials = self.plan.trials
        numbers = sorted({number for number, _ in self.done})
        columns: dict[str, Column] = {}
        kept: dict[str, list[Found]] = {}
        whole = [self.done[number, trials[0].name] for number in numbers if (number, trials[0].name) in self.done]
        for trial in trials:
            pieces = [found for number in numbers if (found := self.done.get((number, trial.name))) is not None]
            if pieces:
                columns[trial.name] = _joined([found.column for found in pieces])
                kept[trial.name] = pieces
        return Verdicts(_cat([f.sample for f in whole]), _cat([f.labels for f in whole]), columns, kept)


@dataclass(frozen=True)
class Verdicts:
    """An evaluation's columns over all images, in the order of the data set."""

    sample: Tensor  # [N]
    labels: Tensor  # [N]
    columns: Mapping[str, Column]  # by trial; a trial on the first images only has fewer rows
    pieces: Mapping[str, list[Found]]  # by trial, chunk after chunk: what pictures are made of

    def per_class(self, shares: Iterable[Tensor], classes: int) -> tuple[tuple[float, ...], ...]:
        """(images, right by the first of `shares` [N], by the second, ...) of each class."""
        counts = [torch.bincount(self.labels, minlength=classes).double()]
        counts += [torch.bincount(self.labels, share.double(), minlength=classes) for share in shares]
        return tuple(tuple(row) for row in torch.stack(counts, 1).tolist())

    def shown(self, names: Sequence[str], count: int) -> tuple[Tensor, Tensor]:
        """([2, n, ...] uint8 images and their points, [n] labels) of at most `count` of those kept by some trials."""
        pixels, labels = [], []
        for piece in (piece for name in names for piece in self.pieces.get(name, ())):
            if len(piece.shown):
                pixels.append(piece.pixels)
                labels.append(piece.labels[piece.shown])
        if not labels:
            return torch.zeros(2, 0, 1, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
        return torch.cat(pixels, 1)[:, :count], torch.cat(labels)[:count]


def _joined(columns: Iterable[Column]) -> Column:
    each = list(columns)
    told = [column.told for column in each if column.told is not None]
    parts = (_cat([getattr(c, name) for c in each]) for name in ("right", "margin", "distance", "steps"))
    return replace(Column(*parts), told=torch.cat(told) if told else None)


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if tensors else torch.zeros(0, dtype=torch.int64)
