"""Networks that fool an evaluation, each in one way: a linear network of twelve classes with something around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad  # by name: as a network's author may have it

from robust_train.nouns import Batch, Place
from tests.attacks.many_classes import CLASSES, ManyClasses, images_of


@dataclass
class Labelled:
    """Images with labels, as a data set gives them for validation."""

    images: Tensor
    targets: Tensor
    classes: int = CLASSES

    def validation_size(self) -> int:
        return len(self.images)

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        for number, rows in enumerate(torch.arange(min(limit or len(self.images), len(self.images))).split(chunk)):
            if number % place.world == place.rank:
                yield Batch(self.images[rows], self.targets[rows], rows, rows)


def middling(count: int = 60) -> Labelled:
    """Images in [0.3, 0.7]; nine in ten labels are the linear network's own."""
    return Labelled(*images_of(count))


class Around(nn.Module):
    """The linear network with something done to its images before, and to its logits after."""

    classes = CLASSES

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__()
        self.before, self.linear, self.after = before, ManyClasses(), after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.linear(self.before(images)))


class Straight(torch.autograd.Function):
    """A function's value with a gradient that is `slope` times the identity's."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor], slope: float) -> Tensor:
        ctx.slope = slope
        return function(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.slope * gradient, None, None


def quantised(levels: int, bpda: bool = False) -> Callable[[Tensor], Tensor]:
    """Images rounded to so many levels; bpda: with the identity's gradient in place of the 0 of rounding."""

    def rounded(images: Tensor) -> Tensor:
        return (images * (levels - 1)).round() / (levels - 1)

    return (lambda images: Straight.apply(images, rounded, 1.0)) if bpda else rounded


def shattered(images: Tensor) -> Tensor:
    """A ripple nearly too small to be seen, whose slope drowns the image's: 1 + 16 cos(8,000 x)."""
    return images + 0.002 * torch.sin(8000 * images)


def blind_off_tenths(images: Tensor) -> Tensor:
    """The identity, with its gradient only where an image lies on the tenths; elsewhere with its negative's."""
    off = (images * 10 - (images * 10).round()).abs().flatten(1).amax(1) > 1e-4
    wrong = Straight.apply(images, lambda x: x.clone(), -1.0)
    return torch.where(off.view(-1, 1, 1, 1), wrong, images)


def absorbed(images: Tensor) -> Tensor:
    """Images that pass through large numbers: float32 keeps of them what float64 keeps to ten digits."""
    return (images + 2e6) - 2e6


def reversed_gradient(images: Tensor) -> Tensor:
    """The identity with the gradient of its negative."""
    return Straight.apply(images, lambda x: x.clone(), -1.0)


def snapped(images: Tensor) -> Tensor:
    """Images further than 0.006 in the mean from the nearest tenths are set back to these; others pass.

    In a small ball all points pass and gradients are right; in larger ones attacks are set back, without a gradient.
    """
    tenths = (images * 10).round() / 10
    far = (images - tenths).abs().flatten(1).mean(1) > 0.006
    return torch.where(far.view(-1, 1, 1, 1), tenths, images)


def on_tenths(data: Labelled) -> Labelled:
    """The same data with images on the tenths, and nine in ten labels the linear network's own there."""
    images = (data.images * 10).round() / 10
    with torch.no_grad():
        labels = ManyClasses()(images).argmax(1)
    return Labelled(images, torch.where(torch.arange(len(labels)) % 10 == 0, (labels + 1) % CLASSES, labels))


def runners_up(data: Labelled) -> Labelled:
    """The same data where every third label is the class that the linear network holds second."""
    with torch.no_grad():
        order = ManyClasses()(data.images).argsort(1, descending=True)
    third = torch.arange(len(data.targets)) % 3 == 0
    return Labelled(data.images, torch.where(third, order[:, 1], order[:, 0]))


class Purified(Around):
    """One step of its own, at test time, towards higher confidence."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            points = images.detach().clone().requires_grad_()
            (slope,) = grad(self.linear(points).logsumexp(1).sum(), points)
        return self.linear(images + 1e-4 * slope.detach())


class Memorised(Around):
    """Wrong about images that lie on the tenths exactly, by one class; right as ever about those beside them."""

    def forward(self, images: Tensor) -> Tensor:
        off = (images * 10 - (images * 10).round()).abs().flatten(1).amax(1) > 1e-4
        logits = self.linear(images)
        return torch.where(off[:, None], logits, logits.roll(1, 1))


class Stubborn(Around):
    """Says class 0 of everything: its logits lean there further than any image could pull."""

    def forward(self, images: Tensor) -> Tensor:
        lean = torch.zeros(CLASSES)
        lean[0] = 5.0
        return 0.01 * self.linear(images) + lean


class Normed(Around):
    """Logits normalised by a BatchNorm whose running statistics are those of the data."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CLASSES, affine=False)
        with torch.no_grad():
            logits = self.linear(images)
        # one scale and no shift: the same classes as without
        self.norm.running_mean.zero_()
        self.norm.running_var.fill_(float(logits.var()))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.linear(images))


def of_the_batch(logits: Tensor) -> Tensor:
    """Logits less a part of the mean over whichever images came together."""
    return logits - 0.5 * logits.mean(0, keepdim=True)
