"""What an attack sees of a network: the score it raises, the score's gradient, and the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, masks
from robust_train.attacks.given import sloped
from robust_train.keyed import Key
from robust_train.losses import full
from robust_train.nouns import Attack, Goal


class Sight:
    """A goal, made once for the images of a call, and asked at points of some of them.

    The network is held by the caller (`attacked`). draws: looks that are averaged, over the network's own randomness;
    look number n of step k has the masks and the noise of draw k draws + n.
    """

    def __init__(
        self,
        network: Any,
        images: Tensor,
        targets: Tensor,
        key: Key,
        goal: Goal,
        drops: Drops = "off",
        draws: int = 1,
    ) -> None:
        """Makes the goal under the masks of draw 0. key: names the images' rows."""
        self.network, self.drops, self.draws = network, drops, draws
        self.every = torch.arange(len(images), device=images.device)
        with masks(network, drops, key.of("drops"), 0), torch.enable_grad():
            self.score = goal.of(network, images, targets, key.of("goal"))

    def __call__(self, points: Tensor, key: Key, draw: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(score [b], logits [b, C]) of points [b, ...] under one draw, with whatever graph there is.

        rows: which of the images they belong to; None: all. key: names the rows of the points. Raises ValueError for a
        score that is not one number a point: another shape would be broadcast, and attack other images in silence.
        """
        with masks(self.network, self.drops, key.of("drops"), draw):
            score, logits = self.score(points, self.every if rows is None else rows)
        if score.shape != points.shape[:1] or logits.shape[:1] != points.shape[:1]:
            raise ValueError(
                f"the goal gave a score of shape {list(score.shape)} and logits of {list(logits.shape)} for "
                f"{len(points)} points: it must give one number and one row of logits for each point it is asked about"
            )
        return score, full(logits)

    def slope(self, points: Tensor, key: Key, step: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(score [b], its gradient for the points [b, ...], logits [b, C]), means over the draws, without a graph.

        One draw's graph is held at a time. Costs 2 draws forward passes.
        """
        points = points.detach().requires_grad_()
        seen = []
        for draw in range(self.draws):
            score, logits = self(points, key, step * self.draws + draw, rows)
            # the sum, not the mean: a mean would tie each image to the batch size; points only: no weight gradient
            (slope,) = torch.autograd.grad(score.sum(), points)
            seen.append((score.detach(), sloped(slope), logits.detach()))
        score, slope, logits = (_mean(values) for values in zip(*seen, strict=True))
        return score, slope, logits

    @torch.no_grad()
    def look(self, points: Tensor, key: Key, step: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(score [b], logits [b, C]), means over the draws of a step, without a gradient. Costs a forward a draw."""
        seen = [self(points, key, step * self.draws + draw, rows) for draw in range(self.draws)]
        score, logits = (_mean(values) for values in zip(*seen, strict=True))
        return score, logits


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Of the draws; of one draw itself."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)


def refuse(attack: Attack, goal: Goal | None, why: str) -> None:
    """ValueError for a goal that is given to an attack that raises none."""
    if goal is not None:
        raise ValueError(f"{attack.use} {why}, so no goal can be given")
