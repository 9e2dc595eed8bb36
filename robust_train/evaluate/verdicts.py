"""What an evaluation of robustness found, as columns of verdicts: what figures, signs and pictures are read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robust_train.evaluate.trial import Column, Trial
from robust_train.nouns import Tensors

SHOWN = 2  # images of a chunk and trial that compete to be shown: of the fallen and of the standing
FALLEN, STANDING = 0, 1  # kinds of pictures


@dataclass(frozen=True)
class Plan:
    """All attacks of an evaluation."""

    trials: tuple[Trial, ...]  # each after those it names
    classes: int  # of the network
    draws: int = 1  # passes of a verdict, for a network with randomness of its own
    sees: float | None = None  # share of the images that a sign has to see; None: each sign's own

    def of(self, role: str, threat: str) -> list[Trial]:
        """The trials of one role in one threat model."""
        return [trial for trial in self.trials if trial.role == role and trial.threat == threat]


@dataclass(frozen=True)
class Verdicts:
    """An evaluation's columns over all images, in the order of the data set."""

    sample: Tensor  # [N]
    labels: Tensor  # [N]
    columns: Mapping[str, Column]  # by trial; a trial on the first images only has fewer rows
    pictures: Mapping[str, Tensors] = field(default_factory=dict)  # by trial: what `pictured` gave, the first of all

    def per_class(self, shares: Iterable[Tensor], classes: int) -> tuple[tuple[float, ...], ...]:
        """(images, right by the first of `shares` [N], by the second, ...) of each class."""
        counts = [torch.bincount(self.labels, minlength=classes).double()]
        counts += [torch.bincount(self.labels, share.double(), minlength=classes) for share in shares]
        return tuple(tuple(row) for row in torch.stack(counts, 1).tolist())


def pictured(column: Column, images: Tensor, points: Tensor, sample: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The images of a chunk that compete to be shown: the most confidently wrong, and those nearest to fall.

    By name, a row each: pixels [s, 2, ...] uint8 (the image and its point), the margin as its order, its kind, sample,
    label and distance.
    """
    attacked = ~column.margin.isnan()
    order = column.margin.nan_to_num(torch.inf).argsort()
    fallen, stands = order[(attacked & ~column.stands)[order]], order[(attacked & column.stands)[order]]
    shown = torch.cat([fallen[:SHOWN], stands[:SHOWN]])
    rows = shown.to(points.device)
    pixels = torch.stack([images[rows], points[rows]], 1).mul(255).round().to(torch.uint8)
    kind = torch.where(column.stands[shown], STANDING, FALLEN)
    own = {"pixels": pixels, "order": column.margin[shown], "kind": kind, "sample": sample[rows], "label": labels[rows]}
    return {**own, "distance": column.distance[shown]}
