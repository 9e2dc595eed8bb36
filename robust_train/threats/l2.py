"""The L2 threat model: the Euclidean length of the perturbation is bounded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust_train.kernels.l2_step import l2_step, norm, unit
from robust_train.keyed import Key, normal, uniform
from robust_train.nouns import number
from robust_train.read.registry import Number, threats
from robust_train.threats.ball import Ball, boxed, refuse_negative


@threats.register("l2")
@dataclass(frozen=True)
class L2(Ball):
    """Perturbations with ||z||_2 <= eps, image in [0, 1].

        start: z uniform in the ball, clipped to the box
        step:  u = z + size g / ||g||_2,    z' = clip(x + u min(1, eps / ||u||_2), 0, 1) - x

    Madry et al. 2018 (arXiv 1706.06083). Scaled, then clipped, as everyone does: inside ball and box, though not the
    nearest such point. An image without gradient stays where it is.
    """

    eps: Number  # radius, Euclidean over all pixels of an image in [0, 1]: 128/255 for CIFAR-10, 3.0 for ImageNet

    examples = "- {eps: 0.5}"

    def __post_init__(self) -> None:
        refuse_negative(self.eps)

    def start(self, images: Tensor, key: Key) -> Tensor:
        direction = normal(key.of("direction"), images.shape, images.device, images.dtype)
        share = uniform(key.of("radius"), (len(images), 1), images.device, images.dtype)
        # volume grows with the radius's d-th power
        radius = number(self.eps) * share ** (1 / max(1, images[:1].numel()))
        return boxed(images, _scaled(direction, radius / norm(direction)))

    def step(self, images: Tensor, z: Tensor, gradient: Tensor, size: float) -> Tensor:
        return l2_step(images, z, gradient, size, number(self.eps))

    def project(self, images: Tensor, z: Tensor) -> Tensor:
        return boxed(images, _scaled(z, (number(self.eps) / norm(z)).clamp(max=1)))

    def unit(self, gradient: Tensor) -> Tensor:
        return unit(gradient)

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        return (adversarial - images).flatten(1).norm(dim=1)


def _scaled(tensor: Tensor, factor: Tensor) -> Tensor:
    """Each row times its factor [B, 1]."""
    return tensor * factor.view(-1, *[1] * (tensor.dim() - 1))
