"""Projected gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked
from robust_train.attacks.given import Towards, aimed, classes_of
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key, integers, normal
from robust_train.losses import cross_entropy, labels_of
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.nouns import Attack, Goal, Raising, Threat, number
from robust_train.read.registry import Number, attacks

NOISE = 1e-3  # standard deviation of the noise that TRADES starts from: at the image itself its gradient is 0


@attacks.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the loss, inside a threat model.

        z_0 = start,    z_{k+1} = threat.step(z_k, grad_x l(f(x + z_k), y), step_size),    k < steps

    For L-infinity this is Madry et al. 2018 (arXiv 1706.06083, section 2.1). Costs 2 steps eot forward passes, and one
    more where the best iterate is kept.
    """

    threat: Threat  # where it searches
    steps: int  # gradients per image
    step_size: Number  # in the threat's unit; for linf pixels in [0, 1], so 2/255 is two grey levels
    start: Literal["random", "zero", "noise"] = "random"  # in the set; the image; or the image + 0.001 N(0, 1)
    keep: Literal["last", "best"] = "last"  # the last iterate, or the one with the largest loss (one forward more)
    targets: Literal["label", "random"] = "label"  # away from the label, or towards a class drawn once an image
    towards: Towards = None  # in its place: a class, or one for each image
    eot: int = 1  # gradients averaged a step, over the network's own randomness
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}
    - {threat: {use: l2, eps: 0.5}, steps: 2, step_size: 0.3}
    - {threat: {use: l1, eps: 1.5, top: 4}, steps: 2, step_size: 1.0}
    - {threat: {use: pyramid, eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}, steps: 2, step_size: 0.01,
      start: zero, targets: random, norm: group, drops: frozen}
    - {threat: {use: pyramid, eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}, steps: 2, step_size: 0.01,
      start: noise}
    - {threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, start: noise, keep: best, eot: 2, drops: redrawn}
    - {threat: {use: linf, eps: 0.1}, steps: 0, step_size: 0.05, keep: best}
    """

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative: it counts gradients")
        if self.eot < 1:
            raise ValueError(f"eot={self.eot} must be at least 1: it counts the gradients averaged a step")
        if self.towards is not None:
            object.__setattr__(self, "towards", classes_of(self.towards))
            if self.targets == "random":
                raise ValueError("towards names classes, and targets=random draws them: leave one of them out")

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        key = key.naming(images)
        with attacked(network, self.norm, key):
            z = self._first(images, key)
            if not self.steps:
                return self.threat.apply(images, z)
            if self.targets == "random":
                targets = integers(key.of("targets"), (len(images),), _classes(network, images), images.device)
            elif self.towards is not None:
                labels = labels_of(targets)
                targets = aimed(self.towards, key, labels, _classes(network, images))
                still = (targets == labels).view(-1, *[1] * (images.dim() - 1))
            uphill = -1.0 if self._aims else 1.0  # towards a class its loss is lowered
            see = Sight(network, images, targets, key, goal or Raising(cross_entropy), self.drops, self.eot)
            best = Best(self.threat)
            for step in range(self.steps):
                score, slope, _ = see.slope(self.threat.apply(images, z), key, step)
                if self.keep == "best":
                    best.see(z, uphill * score)
                z = self.threat.step(images, z, uphill * slope, number(self.step_size))
            if self.keep == "best":
                with torch.no_grad():  # the draw after those of the gradients
                    score, _ = see(self.threat.apply(images, z), key, self.steps * self.eot)
                best.see(z, uphill * score)
                z = best.z
            points = self.threat.apply(images, z)
            return points if self.towards is None else torch.where(still, images, points)

    @property
    def _aims(self) -> bool:
        """Whether a loss is lowered, towards a class, and none raised."""
        return self.targets == "random" or self.towards is not None

    def _first(self, images: Tensor, key: Key) -> Any:
        """Where the ascent starts."""
        if self.start == "random":
            return self.threat.start(images, key.of("start"))
        zero = self.threat.zero(images)
        if self.start == "zero":
            return zero
        levels = zero if isinstance(zero, tuple) else (zero,)
        noisy = tuple(
            level + NOISE * normal(key.of("noise").at(number), level.shape, level.device, level.dtype)
            for number, level in enumerate(levels)
        )
        # a step of size 0 projects: a small eps bounds the noise too
        return self.threat.step(images, noisy if isinstance(zero, tuple) else noisy[0], torch.zeros_like(images), 0.0)

    def cost(self) -> float:
        return 2 * self.steps * self.eot + (self.keep == "best" and self.steps > 0)


class Best:
    """The iterate with the largest loss so far, image by image, without a host sync."""

    def __init__(self, threat: Threat) -> None:
        self.threat = threat
        self.z: Any = None
        self.value: Tensor | None = None

    def see(self, z: Any, value: Tensor) -> None:
        """Keep the rows of `z` whose `value` [B] is larger than what was seen before."""
        value = value.nan_to_num(
            -torch.inf, torch.inf, -torch.inf
        )  # a comparison with NaN would hold the first for ever
        if self.value is None:
            self.z, self.value = z, value
            return
        better = value > self.value
        self.z, self.value = self.threat.weight(z, better, self.z), torch.where(better, value, self.value)


def _classes(network: Any, images: Tensor) -> int:
    """The number of classes: the network's own word, or that of one image's logits."""
    if isinstance(network, (Network, Ensemble)):
        return network.classes
    with torch.no_grad():
        return network(images[:1]).shape[1]
