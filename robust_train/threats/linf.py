"""The L-infinity threat model: every pixel may move by eps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_train.kernels.linf_start import linf_start
from robust_train.kernels.linf_step import linf_step
from robust_train.keyed import Key
from robust_train.nouns import number
from robust_train.read.registry import Number, threats
from robust_train.threats.ball import Ball, boxed


@threats.register("linf")
@dataclass(frozen=True)
class Linf(Ball):
    """Perturbations with max |z| <= eps, image in [0, 1].

        start: z ~ U(-eps, eps), clipped to the box;  step: z' = clip(x + clip(z + size sign(g), -eps, eps), 0, 1) - x

    Madry et al. 2018 (arXiv 1706.06083). `z` is the perturbation itself, [B, ...].
    """

    eps: Number  # radius, pixels in [0, 1]: 8/255 is eight grey levels

    examples = "- {eps: 0.1}"

    def __post_init__(self) -> None:
        if isinstance(self.eps, (int, float)) and not 0 <= self.eps <= 1:
            raise ValueError(
                f"eps={self.eps:g} is not in [0, 1]: pixels live in [0, 1], so {self.eps:g} grey levels are "
                f"eps={self.eps:g}/255, not {self.eps:g}"
            )

    def start(self, images: Tensor, key: Key) -> Tensor:
        return linf_start(images, key, number(self.eps))

    def step(self, images: Tensor, z: Tensor, gradient: Tensor, size: float) -> Tensor:
        return linf_step(images, z, gradient, size, number(self.eps))

    def project(self, images: Tensor, z: Tensor) -> Tensor:
        eps = number(self.eps)
        return boxed(images, z.clamp(-eps, eps))

    def unit(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        return (adversarial - images).flatten(1).abs().amax(1)
