"""The L1 threat model: the sum of the pixels' moves is bounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_train.kernels.l1_step import l1_project, l1_step
from robust_train.keyed import Key, uniform
from robust_train.nouns import number
from robust_train.read.registry import Number, threats
from robust_train.threats.ball import Ball, boxed, refuse_negative


@threats.register("l1")
@dataclass(frozen=True)
class L1(Ball):
    """Perturbations with ||z||_1 <= eps, image in [0, 1].

        start: z uniform in the ball, clipped to the box
        step:  z' = project(z + size sign(g) m / sum m),    m = the k largest |g| among the pixels that can still move

    The projection on ball and box together is exact (Croce and Hein 2021, arXiv 2103.01208); clipping after a
    projection on the ball alone would leave radius unused. The step moves k pixels, by `size` in all (Maini et al.
    2020, arXiv 1909.04068); pixels at the box's face that the gradient points out of are passed over. Ties at the
    k-th place all move; where no pixel has a gradient, none does.
    """

    eps: Number  # radius, the sum over all pixels of an image in [0, 1]: 12 for CIFAR-10, 255 for ImageNet
    top: float = 0.05  # pixels a step moves: below 1 a share of the image's, else how many

    examples = """
    - {eps: 1.5}
    - {eps: 1.5, top: 6}
    """

    def __post_init__(self) -> None:
        refuse_negative(self.eps)
        if self.top <= 0:
            raise ValueError(f"top={self.top:g} must be positive: it says how many pixels a step moves")

    def start(self, images: Tensor, key: Key) -> Tensor:
        count = images[:1].numel()
        # d + 1 exponentials over their sum: d of them are uniform on {a >= 0, sum a <= 1}
        drawn = uniform(key.of("size"), (len(images), count + 1), images.device, images.dtype)
        size = -(1 - drawn).log()
        size = size[:, :-1] / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
        side = 1 - 2 * (uniform(key.of("sign"), (len(images), count), images.device, images.dtype) < 0.5).to(size.dtype)
        return boxed(images, (number(self.eps) * side * size).view_as(images))

    def step(self, images: Tensor, z: Tensor, gradient: Tensor, size: float) -> Tensor:
        pixels = gradient[:1].numel()
        count = int(self.top) if self.top >= 1 else max(1, round(self.top * pixels))
        return l1_step(images, z, gradient, size, number(self.eps), count)

    def project(self, images: Tensor, z: Tensor) -> Tensor:
        return l1_project(images, z, number(self.eps))

    def unit(self, gradient: Tensor) -> Tensor:
        size, largest = gradient.flatten(1).abs().max(1, keepdim=True)
        sign = gradient.flatten(1).gather(1, largest).sign().masked_fill(size == 0, 0)
        return gradient.new_zeros(gradient.shape).flatten(1).scatter_(1, largest, sign).view_as(gradient)

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        return (adversarial - images).flatten(1).abs().sum(1)
