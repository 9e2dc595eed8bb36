"""The L1 threat model: the sum of the pixels' moves is bounded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_train.keyed import Key, uniform
from robust_train.nouns import number
from robust_train.read.registry import Number, threats
from robust_train.threats.ball import Ball, boxed, refuse_negative

HALVINGS = 40  # after which the root's bracket is shorter than float32 resolves


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
        gradient, place = gradient.to(z.dtype), images + z
        face = 1e-6  # x + (1 - x) need not round to 1
        stuck = ((place >= 1 - face) & (gradient > 0)) | ((place <= face) & (gradient < 0))
        g = gradient.masked_fill(stuck, 0).flatten(1)
        count = int(self.top) if self.top >= 1 else max(1, round(self.top * g.shape[1]))
        least = g.abs().topk(min(count, g.shape[1]), dim=1).values[:, -1:]
        chosen = ((g.abs() >= least) & (g != 0)) | g.isnan()
        sign = torch.where(g.isnan(), g, g.sign())  # torch.sign(NaN) is 0: it would hide the fault
        direction = torch.where(chosen, sign, 0) / chosen.sum(1, keepdim=True).clamp(min=1)
        return self.project(images, z + size * direction.view_as(z))

    def project(self, images: Tensor, z: Tensor) -> Tensor:
        return project_l1_box(z, images, number(self.eps))

    def unit(self, gradient: Tensor) -> Tensor:
        size, largest = gradient.flatten(1).abs().max(1, keepdim=True)
        sign = gradient.flatten(1).gather(1, largest).sign().masked_fill(size == 0, 0)
        return gradient.new_zeros(gradient.shape).flatten(1).scatter_(1, largest, sign).view_as(gradient)

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        return (adversarial - images).flatten(1).abs().sum(1)


def project_l1_box(offset: Tensor, images: Tensor, eps: float) -> Tensor:
    """The point nearest to x + offset in {||z||_1 <= eps, x + z in [0, 1]}, as a perturbation [B, ...].

        z_i = sign(u_i) clip(|u_i| - t, 0, cap_i),    cap_i = 1 - x_i where u_i > 0, else x_i

    t = 0 where that is inside the ball, else the root of sum_i clip(|u_i| - t, 0, cap_i) = eps, which falls with t: its
    bracket is halved, without sorting and without a host sync. Croce and Hein 2021 (arXiv 2103.01208, proposition 1).
    """
    if eps <= 0:
        return torch.zeros_like(offset)
    u, x = offset.flatten(1), images.flatten(1)
    size, cap = u.abs(), torch.where(u > 0, 1 - x, x)

    def length(t: Tensor) -> Tensor:
        return (size - t).clamp(min=0).minimum(cap).sum(1, keepdim=True)

    zero = size.new_zeros(len(size), 1)
    low, high = zero, size.amax(1, keepdim=True) if size.numel() else zero
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = length(middle) > eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    t = torch.where(length(zero) <= eps, zero, high)  # the end whose length is at most eps
    return (u.sign() * (size - t).clamp(min=0).minimum(cap)).view_as(offset)
