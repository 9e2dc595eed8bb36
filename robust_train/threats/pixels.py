"""The L0 threat model: few pixels may change, by as much as they like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_train.keyed import Key, uniform
from robust_train.nouns import number
from robust_train.read.registry import Number, threats
from robust_train.threats.ball import Ball, boxed, refuse_negative


@threats.register("l0")
@dataclass(frozen=True)
class L0(Ball):
    """Perturbations of at most eps pixels, image in [0, 1]; a pixel is all channels of one place.

        start: eps places drawn without repetition, new colours U[0, 1]
        step:  z' = project(z + size g / max |g|)

    The projection is the nearest point: b, the move u clipped to the box, at the eps pixels with the largest
    sum_c u_c^2 - (u_c - b_c)^2, and 0 elsewhere (Croce and Hein 2019, arXiv 1909.05040). Of equal ones some are kept.
    """

    eps: Number  # how many pixels may change

    examples = "- {eps: 5}"

    def __post_init__(self) -> None:
        refuse_negative(self.eps)
        if isinstance(self.eps, float) and not self.eps.is_integer():
            raise ValueError(f"eps={self.eps:g} is no whole number: it counts the pixels that may change")

    def start(self, images: Tensor, key: Key) -> Tensor:
        height = places(images)
        place = uniform(key.of("place"), (len(images), height.shape[2]), images.device, images.dtype)
        colour = uniform(key.of("colour"), images.shape, images.device, images.dtype)
        return torch.where(_largest(place, self._count(images)).expand_as(height), places(colour) - height, 0).view_as(
            images
        )

    def step(self, images: Tensor, z: Tensor, gradient: Tensor, size: float) -> Tensor:
        gradient = gradient.to(z.dtype).flatten(1)
        largest = gradient.abs().amax(1, keepdim=True) if gradient.numel() else gradient.sum(1, keepdim=True)
        return self.project(images, z + size * (gradient / largest.masked_fill(largest == 0, 1)).view_as(z))

    def project(self, images: Tensor, z: Tensor) -> Tensor:
        inside = boxed(images, z)
        gain = places(z.square() - (z - inside).square()).sum(1)
        return torch.where(_largest(gain, self._count(images)), places(inside), 0).view_as(images)

    def unit(self, gradient: Tensor) -> Tensor:
        slope = places(gradient)
        return torch.where(_largest(slope.abs().sum(1), 1), slope.sign(), 0).view_as(gradient)

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        return places(adversarial != images).any(1).sum(1).to(images.dtype)

    def _count(self, images: Tensor) -> int:
        return min(int(number(self.eps)), places(images).shape[2])


def places(images: Tensor) -> Tensor:
    """[B, C, ...] as [B, C, places]; [B, D] without channels as [B, 1, D]."""
    return images.flatten(2) if images.dim() > 2 else images[:, None]


def _largest(value: Tensor, count: int) -> Tensor:
    """[B, 1, places] bool: the so many largest of each row of [B, places]."""
    chosen = torch.zeros_like(value, dtype=torch.bool)
    return chosen.scatter_(1, value.topk(count, dim=1).indices, True)[:, None]
