"""A problem whose robust accuracy is known in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.evaluate.report import Flag
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.verdicts import Plan, Verdicts
from robust_train.evaluate.work import evaluate
from robust_train.nouns import Batch, Place

SIDE = 6


class Linear(nn.Module):
    """Two classes, by the sign of w . (x - 1/2): logits (0, s w . (x - 1/2)), with a small s: nothing saturates."""

    classes = 2

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3 * SIDE * SIDE, generator=generator))
        self.scale = scale

    def score(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight

    def forward(self, images: Tensor) -> Tensor:
        score = self.scale * self.score(images)
        return torch.stack([torch.zeros_like(score), score], 1)

    @torch.no_grad()
    def radius(self, images: Tensor, targets: Tensor) -> Tensor:
        """[B]: the largest L-infinity radius that an image survives: its margin / |w|_1; negative where it is wrong."""
        return (2 * targets - 1) * self.score(images) / self.weight.abs().sum()


class Middling:
    """Images far from black and white, so that no ball of radius 0.2 meets the box; every tenth label is wrong."""

    classes = 2

    def __init__(self, number: int = 203, broken: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(2)
        along = Linear().weight.detach().sign().view(3, SIDE, SIDE)
        far = 0.2 * torch.rand(number, 1, 1, 1, generator=generator)  # radii spread over 0 to 0.2
        side = (torch.arange(number) % 2 * 2 - 1).view(-1, 1, 1, 1)
        self.images = 0.5 + side * far * along + 0.02 * (torch.rand(number, 3, SIDE, SIDE, generator=generator) - 0.5)
        self.targets = (torch.arange(number) % 2) ^ (torch.arange(number) % 10 == 0).long()
        self.broken = torch.zeros(number)
        self.broken[list(broken)] = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, SIDE, SIDE)

    def contents(self) -> dict[str, Any]:
        return {"images": self.images, "targets": self.targets, "broken": self.broken}

    def validation_size(self) -> int:
        return len(self.images)

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        parts = torch.arange(min(limit or len(self.images), len(self.images))).split(chunk)
        for rows in parts[place.rank :: place.world]:
            rows = rows[self.broken[rows] == 0]
            yield Batch(self.images[rows], self.targets[rows], rows, rows)


def judged(evaluation: Robustness, network: Any, data: Any, seed: int = 0) -> tuple[Verdicts, Plan, tuple[Flag, ...]]:
    """What an evaluation finds, before it is a report."""
    return evaluation.read(evaluate(evaluation, {"": network}, data, seed))
