"""Any training loss, and gradients that agree within the ball: against catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Batch, Dataset, Loss, Objective, Part, State, Threat, number
from robust_train.read.registry import Number, objectives


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """cos(a, b) of each row, [B]; 1, without a gradient, where one of them is 0: there is nothing to align."""
    first, second = first.flatten(1), second.flatten(1)
    squares = [each.square().sum(1) for each in (first, second)]
    there = (squares[0] > 0) & (squares[1] > 0)
    # a root of 0 has no slope, and NaN would pass through the `where` behind it
    lengths = [torch.where(there, square, 1).sqrt() for square in squares]
    return torch.where(there, (first * second).sum(1) / (lengths[0] * lengths[1]), 1)


@objectives.register("grad-align")
@dataclass(frozen=True)
class GradAlign(Objective):
    """A term for any objective: the image's gradient at x and at a random point of the ball should point one way.

        L = L_objective + weight (1 - mean_b cos(grad_x l(x), grad_x l(x + eta))),    eta ~ start of the threat model

    Andriushchenko and Flammarion 2020 (arXiv 2007.02617, equation 5), with FGSM training as the objective. l: the
    cross-entropy. Both gradients are differentiated for the weights; the network must be twice differentiable, and
    fused attention without a second derivative refuses. Both forwards are in the update's own mode and masks and record
    no statistics. Where a gradient is 0 an image counts as aligned: there the authors leave it out of the mean, which
    would make images depend on each other. Costs the objective and 12 forward passes: 2 for each gradient, 4 for each
    gradient's own backward.
    """

    objective: Objective  # what is trained beside: for the paper madry with the attack fgsm
    weight: Number  # lambda: 0.2 at 8/255 in the paper
    threat: Threat  # the ball in which the second point is drawn

    tells = (("loss/alignment", "1", "1 - cos of the two gradients, before weight"),)
    examples = """
    - {weight: 0.2, threat: {use: linf, eps: 0.1}, objective: {use: madry,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 1, step_size: 0.1, start: zero}}}
    """

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs what is not aligned")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        loss = self.objective(network, batch, key, state)
        mine, images = key.of("grad-align"), batch.images
        other = self.threat.apply(images, self.threat.start(images, mine.of("start")))

        with network.drops(mine.of("drops")), network.mode(record=False):
            here, there = (_slope(network, points, batch.targets) for points in (images, other))

        apart = 1 - alignment(here, there).mean()
        total = number(self.weight) * apart + (0 if loss.total is None else loss.total)
        return Loss(total, {**loss.metrics, "loss/alignment": apart}, loss.counts, loss.of, loss.sums)

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return self.objective.parts(network, data)

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        self.objective.settle(network, state, sums, update, updates)

    def cost(self) -> float:
        return self.objective.cost() + 12

    def groups(self) -> int:
        return self.objective.groups()


def _slope(network: Any, points: Tensor, targets: Tensor) -> Tensor:
    """grad_x of the cross-entropy of each image, with its graph."""
    points = points.detach().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(network(points), targets).sum(), points, create_graph=True)
    return slope
