"""What the threat models of a norm ball have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from robust_train.nouns import Threat
from robust_train.read.registry import Number


class Ball(Threat, ABC):
    """Perturbations of a norm at most `eps`, image in [0, 1]. `z` is the perturbation itself, [B, ...].

    A step of size 0 projects: it moves only what lies outside.
    """

    eps: Number

    def zero(self, images: Tensor) -> Tensor:
        return images.new_zeros(images.shape)

    def apply(self, images: Tensor, z: Tensor) -> Tensor:
        return (images + z).clamp(0, 1)

    @abstractmethod
    def project(self, images: Tensor, z: Tensor) -> Tensor:
        """The perturbation brought into ball and box."""

    @abstractmethod
    def unit(self, gradient: Tensor) -> Tensor:
        """The steepest direction of length 1 in the ball's norm: sign g, g / ||g||_2, or the largest entry's sign."""


def boxed(images: Tensor, z: Tensor) -> Tensor:
    """The perturbation clipped so that the image stays in [0, 1]: each |z_i| falls or stays, so no norm rises."""
    return (images + z).clamp_(0, 1).sub_(images)


def refuse_negative(eps: Number) -> None:
    """ValueError where a radius is a plain number below 0."""
    if isinstance(eps, (int, float)) and not eps >= 0:
        raise ValueError(f"eps={eps:g} must not be negative: it is the radius of the ball")
