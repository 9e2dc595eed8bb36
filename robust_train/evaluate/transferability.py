"""Transferability: networks tried on the adversarial images that were made for other networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust_train.attacks.nearest import NearestAttack
from robust_train.evaluate.accuracy import judged, refuse_unboxed
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import Figure, Report, wilson
from robust_train.evaluate.trial import CLEAN, Column, Trial, seeded, tried
from robust_train.evaluate.work import evaluate
from robust_train.keyed import Key, normal
from robust_train.losses import correct, full, labels_of
from robust_train.models.shapes import written
from robust_train.nouns import Attack, Batch, Dataset, Evaluator, Goal, Piece, Shape, Tensors, Threat
from robust_train.read.errors import ConfigError
from robust_train.read.registry import evaluators

FOUND, NOISE, AMPLIFIED, AMPLIFIED_NOISE = "found", "noise", "amplified", "amplified noise"


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


@evaluators.register("transfer")
@dataclass(frozen=True)
class Transferability(Evaluator):
    """The cross-model tables of Szegedy et al. 2014 (arXiv 1312.6199, section 4.2), with their controls.

    The attack is made for each network on the images that it is right on; the points r = x' - x that fool it are tried
    on every network. Controls: Gaussian noise, of each image as large as its r in root mean square; with `amplify` also
    x + amplify r / rms(r), and noise as large. All are clipped to [0, 1], which makes them smaller: sizes after it are
    reported. Noise is drawn by the image, the same for every network but for its size.
    Costs the attack for each network, and (2 to 4) T + 1 forwards an image and network among T.
    """

    attack: Attack  # made for each network, inside a ball or to the nearest point
    amplify: float | None = None  # root mean square to which each change is scaled, pixels in [0, 1]; null: none is
    images: int | None = None  # the first so many validation images; null: all
    chunk: int = 256  # consecutive images that are attacked together

    examples = "- {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.1}, images: 8}"
    harmless: ClassVar[tuple[str, ...]] = ("images", "chunk")  # which stand with each chunk

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

    def __call__(self, networks: Mapping[str, Any], data: Dataset, device: str = "cpu") -> Matrix:
        """The matrix of some networks, by name, over the validation images of `data`; nothing is kept."""
        return self.report(evaluate(self, networks, data, device=device)).result

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> tuple[Piece, ...]:
        """Who is right when clean; then what was made for each network and its controls. ConfigError for one alone."""
        if len(networks) < 2:
            raise ConfigError("a matrix of transfers needs two networks at least: name another checkpoint")
        names, cost = tuple(networks), self.attack.cost() + len(self.kinds) * len(networks)
        clean = Piece(CLEAN, networks=names, cost=len(networks))
        made = (Piece(f"made for {number}", number, (CLEAN,), names, cost=cost) for number in range(len(names)))
        return (clean, *made)

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, Tensor]:
        """{"right"} [n, T] of each network on clean images; of what was made for one: the same and [n] size, by kind.

        nan where an image does not count: the network is wrong on it, or (of the controls) was not fooled.
        """
        each = list(networks.items())
        if piece.name == CLEAN:
            whole = torch.ones(len(batch), dtype=torch.bool)
            return {"right": _answers(each, batch, batch.images, whole, key)}
        refuse_unboxed(batch.scale, self.attack.use)
        source, clean = piece.what, before[CLEAN]["right"]
        nothing = torch.full((len(batch),), torch.nan)
        earlier = Column(clean[:, source], nothing, nothing, nothing)
        _, points = tried(each[source][1], batch, Trial(f"{source}/{FOUND}", self.attack), [earlier], key)
        attacked, made = clean[:, source] == 1, {}
        for kind, images in self._changed(batch, points, key).items():
            made[f"{kind}/right"] = _answers(each, batch, images, attacked, key)
            made[f"{kind}/size"] = rms(images - batch.images).float()
            attacked = made[f"{kind}/right"][:, source] == 0 if kind == FOUND else attacked
        return made

    def report(self, found: Columns) -> Report:
        """The matrix, whose cells are counts of the verdicts and nothing else."""
        names, clean = found.pieces[CLEAN].networks or (), found[CLEAN]["right"] == 1
        cells, sizes, held, count = [], [], [], len(clean)
        for source, name in enumerate(names):
            made = found[f"made for {source}"]
            fell = made[f"{FOUND}/right"][:, source] == 0
            held.append(Figure(self.attack.label, float((clean[:, source] & ~fell).sum()), count))
            for kind in self.kinds:
                asked = _mean(made[f"{FOUND}/size"][fell]) if kind in (FOUND, NOISE) else self.amplify or 0.0
                sizes.append(Size(kind, name, asked, _mean(made[f"{kind}/size"][fell])))
                for target, other in enumerate(names):
                    wrong, both = made[f"{kind}/right"][fell, target] == 0, clean[fell, target]
                    counts = (len(wrong), int(wrong.sum()), int(both.sum()), int((wrong & both).sum()))
                    cells.append(Cell(kind, name, other, *counts))
        figures = tuple(Figure(CLEAN, float(clean[:, one].sum()), count, 0.0) for one in range(len(names)))
        matrix = Matrix(names, self.kinds, figures, tuple(held), tuple(cells), tuple(sizes))
        return Report((*figures, *held), result=matrix)

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


def _mean(sizes: Tensor) -> float:
    return float(sizes.double().mean()) if len(sizes) else math.nan


def _known(rate: float) -> float | None:
    return None if math.isnan(rate) else rate
