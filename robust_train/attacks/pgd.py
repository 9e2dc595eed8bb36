"""Projected gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked, masks
from robust_train.keyed import Key, integers
from robust_train.losses import cross_entropy
from robust_train.nouns import Attack, PerImage, Threat
from robust_train.read.registry import Number, attacks


@attacks.register("pgd")
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent on the loss, inside a threat model.

        z_0 = start,    z_{k+1} = threat.step(z_k, grad_x l(f(x + z_k), y), step_size),    k < steps

    For L-infinity this is Madry et al. 2018 (arXiv 1706.06083, section 2.1). Costs 2 steps eot forward passes, and one
    more where the best iterate is kept.
    """

    threat: Threat
    steps: int  # gradients per image
    step_size: Number  # in the threat's unit; for linf pixels in [0, 1], so 2/255 is two grey levels
    start: Literal["random", "zero"] = "random"  # a random point of the threat model, or the image itself
    keep: Literal["last", "best"] = "last"  # the last iterate, or the one with the largest loss (one forward more)
    targets: Literal["label", "random"] = "label"  # away from the label, or towards a class drawn once an image
    eot: int = 1  # gradients averaged a step, over the network's own randomness
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative: it counts gradients")
        if self.eot < 1:
            raise ValueError(f"eot={self.eot} must be at least 1: it counts the gradients averaged a step")

    def __call__(
        self, network: Any, images: Tensor, targets: Tensor, key: Key, loss: PerImage | None = None
    ) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        loss, key = loss or cross_entropy, key if key.row is not None else key.rows(torch.arange(len(images)))
        with attacked(network, self.norm):
            z = self.threat.start(images, key.of("start")) if self.start == "random" else self.threat.zero(images)
            best = _Best(self.threat)
            for step in range(self.steps):
                value, gradient, targets = self._ascent(network, images, z, targets, key, loss, step)
                if self.keep == "best":
                    best.see(z, value)
                z = self.threat.step(images, z, gradient, self.step_size)
            if self.keep == "best" and self.steps:
                with torch.no_grad():
                    best.see(z, self._value(network, self.threat.apply(images, z), targets, key, loss, self.steps))
                z = best.z
            return self.threat.apply(images, z)

    def _ascent(self, network, images, z, targets, key, loss, step) -> tuple[Tensor, Tensor, Tensor]:
        """The loss [B] to be raised, its gradient for the images, and the targets, drawn at the first step if random."""
        if self.targets == "random" and step == 0:
            targets = integers(key.of("targets"), (len(images),), _classes(network, images), images.device)
        adversarial = self.threat.apply(images, z).detach().requires_grad_()
        values = [
            self._value(network, adversarial, targets, key, loss, step * self.eot + draw) for draw in range(self.eot)
        ]
        value = values[0] if self.eot == 1 else torch.stack(values).mean(0)
        # the sum, not the mean: a mean would tie each image to the batch size; images only: no weight gradient
        (gradient,) = torch.autograd.grad(value.sum(), adversarial)
        return value.detach(), gradient, targets

    def _value(self, network, adversarial, targets, key, loss, draw) -> Tensor:
        """[B] what is raised: the loss, or minus the loss towards a drawn class."""
        with masks(network, self.drops, key.of("drops"), draw):
            value = loss(network(adversarial), targets)
        return -value if self.targets == "random" else value

    def cost(self) -> float:
        return 2 * self.steps * self.eot + (self.keep == "best" and self.steps > 0)


class _Best:
    """The iterate with the largest loss so far, image by image, without a host sync."""

    def __init__(self, threat: Threat) -> None:
        self.threat, self.z, self.value = threat, None, None

    def see(self, z: Any, value: Tensor) -> None:
        if self.z is None:
            self.z, self.value = z, value
            return
        better = value > self.value
        self.z, self.value = self.threat.weight(z, better, self.z), torch.where(better, value, self.value)


def _classes(network: Any, images: Tensor) -> int:
    """The number of classes: the network's own word, or that of one image's logits."""
    if hasattr(network, "classes"):
        return network.classes
    with torch.no_grad():
        return network(images[:1]).shape[1]
