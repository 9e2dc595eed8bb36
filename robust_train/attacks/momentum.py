"""Iterated one-step attacks from the image itself, without and with a momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked
from robust_train.attacks.pgd import PGD
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Attack, Goal, Raising, Threat, number
from robust_train.read.registry import Number, attacks


@attacks.register("bim")
@dataclass(frozen=True)
class BIM(Attack):
    """The basic iterative method: PGD from the image itself, z_0 = 0.

    Kurakin et al. 2017 (arXiv 1607.02533). Costs 2 steps forward passes.
    """

    threat: Threat  # where it searches
    steps: int  # gradients per image
    step_size: Number  # in the threat's unit
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    usual_steps, usual_way = 10, 1.0
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}
    - {threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.3, norm: group, drops: frozen}
    """

    def __post_init__(self) -> None:
        _refuse_negative(self.steps)

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        pgd = PGD(self.threat, self.steps, self.step_size, start="zero", norm=self.norm, drops=self.drops)
        return pgd(network, images, targets, key, goal)

    def cost(self) -> float:
        return 2 * self.steps


@attacks.register("mi-fgsm")
@dataclass(frozen=True)
class MIFGSM(Attack):
    """Ascent along a momentum of normalised gradients, from the image itself; its images carry over to other networks.

        v' = mu v + g / mean |g|,    z' = threat.step(z, v', step_size),    g = mean_i grad_x l(f((x + a) / 2^i), y)

    i < scales; a = z, or z + step_size mu v where it looks ahead. Dong et al. 2018 (arXiv 1710.06081, algorithm 1), who
    write ||g||_1 for mean |g|: for a step of signs, the same. With look_ahead NI-FGSM, with scales 5 and look_ahead
    SI-NI-FGSM (Lin et al. 2020, arXiv 1908.06281). Costs 2 steps scales forward passes.
    """

    threat: Threat  # where it searches; the papers take linf of 16/255
    steps: int  # of z; 10 in the papers
    step_size: Number  # in the threat's unit; the papers take eps / steps
    momentum: float = 1.0  # mu: share of the last direction that is kept
    look_ahead: bool = False  # whether the gradient is taken where the momentum alone would lead
    scales: int = 1  # gradients averaged a step, of the image divided by 1, 2, 4, ...
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    usual_steps, usual_way = 10, 1.0
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 3, step_size: 0.05}
    - {threat: {use: pyramid, eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}, steps: 2, step_size: 0.01,
      momentum: 0.5, look_ahead: true, scales: 2, norm: group, drops: redrawn}
    """

    def __post_init__(self) -> None:
        _refuse_negative(self.steps)
        if self.momentum < 0:
            raise ValueError(f"momentum={self.momentum:g} must not be negative: it is the share of a direction kept")
        if self.scales < 1:
            raise ValueError(f"scales={self.scales} must be at least 1: it counts the gradients averaged a step")

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        key = key.naming(images)
        size = number(self.step_size)
        z, v = self.threat.zero(images), torch.zeros_like(images)
        with attacked(network, self.norm, key):
            if not self.steps:
                return self.threat.apply(images, z)
            see = Sight(network, images, targets, key, goal or Raising(cross_entropy), self.drops)
            for step in range(self.steps):
                point = self.threat.apply(images, z)
                if self.look_ahead:
                    point = point + size * self.momentum * v  # neither in the ball nor in the box, as in the paper
                slope = self._slope(see, point, key, step)
                v = self.momentum * v + slope / _size(slope)
                z = self.threat.step(images, z, v, size)
            return self.threat.apply(images, z)

    def _slope(self, see: Sight, point: Tensor, key: Key, step: int) -> Tensor:
        """[B, ...] the gradient at `point`, averaged over its copies, scale by scale."""
        slope = torch.zeros_like(point)
        for copy in range(self.scales):
            slope += see.slope(point / 2**copy, key, step * self.scales + copy)[1] / 2**copy
        return slope / self.scales

    def cost(self) -> float:
        return 2 * self.steps * self.scales


def _size(slope: Tensor) -> Tensor:
    """[B, 1, ...] the mean of |g| over an image; 1 where nothing slopes."""
    size = slope.flatten(1).abs().mean(1)
    return size.masked_fill(size == 0, 1).view(-1, *[1] * (slope.dim() - 1))


def _refuse_negative(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps={steps} must not be negative: it counts gradients")
