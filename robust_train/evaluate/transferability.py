"""Transferability: networks tried on the adversarial images that were made for other networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.nearest import NearestAttack
from robust_train.evaluate.accuracy import judged, refuse_unboxed
from robust_train.evaluate.report import Figure, wilson
from robust_train.evaluate.trial import CLEAN, Column, Trial, seeded, tried
from robust_train.evaluate.work import Found, Plan, Store, Verdicts
from robust_train.keyed import Key, normal
from robust_train.losses import correct, full, labels_of
from robust_train.models.shapes import written
from robust_train.nouns import Attack, Batch, Dataset, Goal, Place, Shape, Threat
from robust_train.read.errors import ConfigError

FOUND, NOISE, AMPLIFIED, AMPLIFIED_NOISE = "found", "noise", "amplified", "amplified noise"
Watch = Callable[[str, int, int, int], None]
"""Told of each piece: for which network, the chunk, the images attacked and how many of them were fooled."""


@dataclass(frozen=True)
class Unbounded(Attack):
    """The nearest points that fool, however far they are: what an attack finds before it is brought into a ball."""

    attack: NearestAttack

    @property
    def threat(self) -> Threat:  # type: ignore[override]
        """Whose norm is made small."""
        return self.attack.threat

    def reach(self) -> tuple[Threat]:
        """Every distance is allowed."""
        return (replace(self.attack.threat, eps=math.inf),)  # type: ignore[type-var]

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        """The points [B, ...] in [0, 1]; the image itself where nothing fooled."""
        return self.attack.nearest(network, images, targets, key).points

    def cost(self) -> float:
        return self.attack.cost()

    @property
    def label(self) -> str:
        return self.attack.label


@dataclass(frozen=True)
class Cell:
    """One network tried on what was made for one network (or on a control of it)."""

    kind: str  # found, noise, amplified, amplified noise
    made_for: str
    tried_on: str
    examples: int  # images that the first network was right on and that fooled it
    wrong: int  # of them those that the second takes for another class than the label
    both: int  # of the examples those whose clean image the second is right on, too
    fooled: int  # of these those that it is wrong on

    @property
    def error(self) -> float:
        """Wrong over all examples that fooled the first: the rate in the tables of Szegedy et al."""
        return self.wrong / self.examples if self.examples else math.nan

    @property
    def accuracy(self) -> float:
        """Right over all examples that fooled the first."""
        return 1 - self.error

    @property
    def transfer(self) -> float:
        """Fooled over the examples whose clean image both are right on: without what was wrong anyway."""
        return self.fooled / self.both if self.both else math.nan

    def tree(self) -> dict[str, Any]:
        """For JSON: null where there are no examples."""
        own = {"kind": self.kind, "made_for": self.made_for, "tried_on": self.tried_on, "examples": self.examples}
        rates = {"error": _known(self.error), "accuracy": _known(self.accuracy), "transfer": _known(self.transfer)}
        span = list(wilson(self.error, self.examples)) if self.examples else None
        return {**own, "wrong": self.wrong, "both": self.both, "fooled": self.fooled, **rates, "error_interval95": span}


@dataclass(frozen=True)
class Size:
    """How large the changes are that a row's cells were tried on: sqrt(mean r^2) of an image, its mean over images."""

    kind: str
    made_for: str
    asked: float  # as it was drawn or scaled
    clipped: float  # as it is, with the image clipped to [0, 1]

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        sizes = {"asked": _known(self.asked), "clipped": _known(self.clipped)}
        return {"kind": self.kind, "made_for": self.made_for, **sizes}


@dataclass(frozen=True)
class Matrix:
    """Every network tried on what was made for every network."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    clean: tuple[Figure, ...]  # of each network
    source: tuple[Figure, ...]  # of each network under the attack made for it
    cells: tuple[Cell, ...]
    sizes: tuple[Size, ...]

    def rows(self, kind: str, rate: Callable[[Cell], float]) -> list[list[float]]:
        """A rate of each cell of one kind: a row a network they were made for, a column one they were tried on."""
        cells = [rate(cell) for cell in self.cells if cell.kind == kind]
        width = len(self.names)
        return [cells[first : first + width] for first in range(0, len(cells), width)]

    def size(self, kind: str, name: str) -> Size:
        """The size of the changes of one row."""
        return next(size for size in self.sizes if (size.kind, size.made_for) == (kind, name))

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "names": list(self.names),
            "over": "error and accuracy: the examples that fooled the network they were made for, which was right on "
            "their images; transfer: those of them whose clean image the other network is right on, too",
            "clean": [figure.tree() for figure in self.clean],
            "source": [figure.tree() for figure in self.source],
            "cells": [cell.tree() for cell in self.cells],
            "rms": [size.tree() for size in self.sizes],
        }


@dataclass(frozen=True)
class Transferability:
    """The cross-model tables of Szegedy et al. 2014 (arXiv 1312.6199, section 4.2), with their controls.

    The attack is made for each network on the images that it is right on; the points r = x' - x that fool it are tried
    on every network. Controls: Gaussian noise, of each image as large as its r in root mean square; with `amplify` also
    x + amplify r / rms(r), and noise as large. All are clipped to [0, 1], which makes them smaller: sizes after it are
    reported. Noise is drawn by the image, the same for every network but for its size.
    Costs the attack for each network, and (2 to 4) T + 1 forwards an image and network among T.
    """

    attack: Attack
    amplify: float | None = None  # root mean square to which each change is scaled, pixels in [0, 1]; null: none is
    images: int | None = None  # the first so many validation images; null: all
    chunk: int = 256  # consecutive images that are attacked together
    seed: int = 0  # of all draws

    def __post_init__(self) -> None:
        if self.amplify is not None and not 0 < self.amplify <= 1:
            raise ValueError(f"amplify={self.amplify:g} must be above 0 and at most 1: pixels live in [0, 1]")
        for name in ("images", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What networks are tried on."""
        return (FOUND, NOISE) if self.amplify is None else (FOUND, NOISE, AMPLIFIED, AMPLIFIED_NOISE)

    def __call__(
        self,
        networks: Mapping[str, Any],
        data: Dataset,
        device: Any = "cpu",
        store: Callable[[Plan], Store] = lambda plan: Store(None, {}, plan),
        watch: Watch = lambda name, chunk, tried, fooled: None,
    ) -> Matrix:
        """The matrix of some networks, by name, over the validation images of `data`.

        Pieces that the store has are not made anew. Raises ConfigError for a single network, and where there are no
        images; DataError and NumericsError as the data and the attack do.
        """
        if len(networks) < 2:
            raise ConfigError("a matrix of transfers needs two networks at least: name another checkpoint")
        plan = self.plan(len(networks), data.classes)
        kept = store(plan)
        place = Place(device=str(device))
        for at, raw in place.numbered(data.validation_batches(place, self.chunk, self.images)):
            if len(raw):
                refuse_unboxed(raw.scale, self.attack.use)
                self._chunk(list(networks.items()), raw.to(device), at, plan, kept, watch)
        if not kept.done:
            raise ConfigError("there are no images to try networks on: name validation shards (--data)")
        return self.matrix(tuple(networks), kept.verdicts())

    def plan(self, networks: int, classes: int) -> Plan:
        """What is kept of each chunk: clean verdicts, then of each network what was made for it and its controls.

        A column's `right` is [n, T], of each network; its `distance` [n] the size of the change.
        """
        trials = [Trial(CLEAN, None, (), role="clean")]
        for source in range(networks):
            trials += [Trial(_name(source, kind), self.attack, (CLEAN,), "transfer") for kind in self.kinds]
        return Plan(tuple(trials), classes, self.chunk, self.images, self.seed)

    def matrix(self, names: tuple[str, ...], verdicts: Verdicts) -> Matrix:
        """The cells, which are counts of the verdicts and nothing else."""
        clean, count = verdicts.columns[CLEAN].right == 1, len(verdicts.sample)
        cells, sizes, held = [], [], []
        for source, name in enumerate(names):
            found = verdicts.columns[_name(source, FOUND)]
            fell = found.right[:, source] == 0
            held.append(Figure(self.attack.label, float((clean[:, source] & ~fell).sum()), count))
            for kind in self.kinds:
                column = verdicts.columns[_name(source, kind)]
                asked = _mean(found.distance[fell]) if kind in (FOUND, NOISE) else self.amplify or 0.0
                sizes.append(Size(kind, name, asked, _mean(column.distance[fell])))
                for target, other in enumerate(names):
                    wrong, both = column.right[fell, target] == 0, clean[fell, target]
                    counts = (len(wrong), int(wrong.sum()), int(both.sum()), int((wrong & both).sum()))
                    cells.append(Cell(kind, name, other, *counts))
        figures = tuple(Figure(CLEAN, float(clean[:, one].sum()), count, 0.0) for one in range(len(names)))
        return Matrix(names, self.kinds, figures, tuple(held), tuple(cells), tuple(sizes))

    def _chunk(
        self, networks: Sequence[tuple[str, Any]], batch: Batch, at: int, plan: Plan, kept: Store, watch: Watch
    ) -> None:
        """Every piece of one chunk that the store has not got."""
        key = Key(self.seed)
        if (at, CLEAN) not in kept.done:
            right = _answers(networks, batch, batch.images, torch.ones(len(batch), dtype=torch.bool), key)
            kept.put((at, CLEAN), _found(batch, right, torch.zeros(len(batch))))
        clean = kept.done[at, CLEAN].column.right
        for source, (name, network) in enumerate(networks):
            if any((at, _name(source, kind)) not in kept.done for kind in self.kinds):
                nothing = torch.full((len(batch),), torch.nan)
                before = Column(clean[:, source], nothing, nothing, nothing)
                _, points = tried(network, batch, Trial(_name(source, FOUND), self.attack), [before], key)
                attacked = clean[:, source] == 1
                for kind, images in self._changed(batch, points, key).items():
                    answers = _answers(networks, batch, images, attacked, key)
                    kept.put((at, _name(source, kind)), _found(batch, answers, rms(images - batch.images)))
                    attacked = answers[:, source] == 0 if kind == FOUND else attacked
            found = kept.done[at, _name(source, FOUND)].column.right[:, source]
            watch(name, at, int((~found.isnan()).sum()), int((found == 0).sum()))

    def _changed(self, batch: Batch, points: Tensor, key: Key) -> dict[str, Tensor]:
        """[n, ...] by kind: the examples, then their controls."""
        images, change = batch.images, points - batch.images
        drawn = normal(key.of("noise").rows(batch.sample), images.shape, images.device)
        made = {FOUND: points, NOISE: (images + scaled(drawn, rms(change))).clamp(0, 1)}
        if self.amplify is not None:
            size = torch.full_like(rms(change), self.amplify)
            made[AMPLIFIED] = (images + scaled(change, size)).clamp(0, 1)
            made[AMPLIFIED_NOISE] = (images + scaled(drawn, size)).clamp(0, 1)
        return made


def alike(kinds: Mapping[str, tuple[int, Shape]]) -> None:
    """Raise ConfigError unless all networks have the same (classes, shape of the images)."""
    (first, (classes, shape)), *others = kinds.items()
    for name, (its_classes, its_shape) in others:
        apart = [] if its_classes == classes else [f"classes {classes} and {its_classes}"]
        apart += [] if its_shape == shape else [f"images {written(shape)} and {written(its_shape)}"]
        if apart:
            raise ConfigError(
                f"{first} and {name} cannot be tried on the same images: {', '.join(apart)}. Compare networks of one "
                "data set and image size."
            )


def rms(change: Tensor) -> Tensor:
    """[B]: sqrt(mean r^2) of each image's change."""
    return change.flatten(1).square().mean(1).sqrt()


def scaled(change: Tensor, size: Tensor) -> Tensor:
    """Each image's change [B, ...] made as large as `size` [B] in root mean square; none stays none."""
    factor = size / rms(change).masked_fill(rms(change) == 0, 1)
    return change * factor.view(-1, *[1] * (change.dim() - 1))


def _answers(networks: Sequence[tuple[str, Any]], batch: Batch, points: Tensor, wanted: Tensor, key: Key) -> Tensor:
    """[n, T]: 1 where a network is right, by a fresh float32 forward; nan for images that are not wanted [n] bool."""
    right = torch.full((len(batch), len(networks)), torch.nan)
    labels = labels_of(batch.targets)
    rows = wanted.nonzero().flatten()
    there = rows.to(points.device)
    for column, (_, network) in enumerate(networks if len(rows) else ()):
        with judged(network), seeded(network, key, batch[there]), torch.no_grad():
            right[rows, column] = correct(full(network(points[there])), labels[there]).cpu()
    return right


def _found(batch: Batch, right: Tensor, size: Tensor) -> Found:
    """A piece; no picture is kept."""
    labels = labels_of(batch.targets)
    column = Column(right, torch.full((len(batch),), torch.nan), size.float().cpu(), torch.full((len(batch),), -1))
    none = torch.zeros(0, dtype=torch.int64)
    return Found(batch.sample.cpu(), labels.cpu(), column, none, torch.zeros(2, 0, dtype=torch.uint8))


def _name(source: int, kind: str) -> str:
    """A piece's name: of what was made for the network of that number."""
    return f"{source}/{kind}"


def _mean(sizes: Tensor) -> float:
    return float(sizes.double().mean()) if len(sizes) else math.nan


def _known(rate: float) -> float | None:
    return None if math.isnan(rate) else rate
