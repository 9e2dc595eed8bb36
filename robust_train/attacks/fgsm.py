"""One-step attacks: the image's gradient is taken once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked
from robust_train.attacks.pgd import PGD
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball
from robust_train.threats.linf import Linf


@attacks.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of the radius from the image itself: x' = clip(x + eps sign(grad_x l(f(x), y)), 0, 1).

    Goodfellow et al. 2015 (arXiv 1412.6572). On another ball than linf, its own steepest step. Costs 2 forward passes.
    Networks trained on it alone learn to blunt the gradient (catastrophic overfitting).
    """

    threat: Ball  # where it searches: linf, l2 or l1
    radii: float = 1.0  # length of the step, in radii of the threat model
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off or drawn once

    examples = """
    - {threat: {use: linf, eps: 0.1}}
    - {threat: {use: l2, eps: 0.5}, norm: group}
    """

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        size = self.radii * number(self.threat.eps)
        pgd = PGD(self.threat, 1, size, start="zero", norm=self.norm, drops=self.drops)
        return pgd(network, images, targets, key, goal)

    def cost(self) -> float:
        return 2


@attacks.register("fgsm-rs")
@dataclass(frozen=True)
class FGSMRS(Attack):
    """One step from a random start, projected: z_0 ~ U(-eps, eps), z = project(z_0 + 1.25 eps sign(g)).

    Wong, Rice and Kolter 2020 (arXiv 2001.03994, algorithm 3). Costs 2 forward passes.
    """

    threat: Ball  # where it searches: linf, l2 or l1
    radii: float = 1.25  # length of the step, in radii of the threat model
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off or drawn once

    examples = """
    - {threat: {use: linf, eps: 0.1}}
    - {threat: {use: l1, eps: 1.5}, drops: redrawn}
    """

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        size = self.radii * number(self.threat.eps)
        pgd = PGD(self.threat, 1, size, norm=self.norm, drops=self.drops)
        return pgd(network, images, targets, key, goal)

    def cost(self) -> float:
        return 2


@attacks.register("n-fgsm")
@dataclass(frozen=True)
class NFGSM(Attack):
    """One step from noise wider than the ball, not projected: z = z_0 + eps sign(g), z_0 ~ U(-k eps, k eps).

        x_0 = clip(x + z_0, 0, 1),    x' = clip(x_0 + eps sign(grad l(f(x_0), y)), 0, 1)

    de Jorge et al. 2022 (arXiv 2202.01181, algorithm 1). Its images lie in the ball of (k + 1) eps: it makes training
    images, and robustness is measured at eps by another attack. Costs 2 forward passes.
    """

    threat: Linf  # the ball that robustness is meant for; its images lie in a wider one
    noise: float = 2.0  # k, the half-width of the random start, in radii of the threat model
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off or drawn once

    examples = """
    - {threat: {use: linf, eps: 0.05}}
    - {threat: {use: linf, eps: 0.05}, noise: 1.0, norm: group, drops: frozen}
    """

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise={self.noise:g} must not be negative: it is a half-width, in radii")
        eps = self.threat.eps
        if isinstance(eps, (int, float)) and (self.noise + 1) * eps > 1:
            raise ValueError(
                f"noise={self.noise:g} at eps={eps:g} reaches {(self.noise + 1) * eps:g}, beyond the whole range of a "
                f"pixel: use a smaller eps, or noise of at most {1 / eps - 1:g}"
            )

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], within (noise + 1) eps, without a graph."""
        eps = number(self.threat.eps)
        (wide,) = self.reach()
        key = key.naming(images)
        with attacked(network, self.norm, key):
            z = replace(self.threat, eps=self.noise * eps).start(images, key.of("start"))
            see = Sight(network, images, targets, key, goal or Raising(cross_entropy), self.drops)
            _, slope, _ = see.slope(wide.apply(images, z), key, 0)
            return wide.apply(images, wide.step(images, z, slope, eps))

    def reach(self) -> tuple[Linf]:
        """The ball of (k + 1) eps, which no step leaves."""
        return (replace(self.threat, eps=(self.noise + 1) * number(self.threat.eps)),)

    def cost(self) -> float:
        return 2
