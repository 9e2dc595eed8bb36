"""Forward and backward passes of an attack, image by image: what an attack spends, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.attacks.chance import Chancy
from robust_train.models.foreign import Foreign


class Counts:
    """[N] forward and backward passes so far: each row that a network is asked about counts for one of the images.

    It is the image that it lies nearest to, in the Euclidean norm (as Cina et al. 2025 have it, arXiv 2404.19460,
    section 3, in the threat's norm), so an attack may pack, repeat and order its images as it likes. A backward pass
    counts when a gradient reaches the logits. Costs N products of images a row, and no read of the device.
    """

    def __init__(self, images: Tensor) -> None:
        self.flat = images.detach().flatten(1).float()
        self.squares = self.flat.square().sum(1)
        self.shape = images.shape[1:]
        self.forwards = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.backwards = torch.zeros_like(self.forwards)

    def see(self, points: Any, answers: Any) -> None:
        """A forward pass of points [b, ...] to answers."""
        if not isinstance(points, Tensor) or points.shape[1:] != self.shape:
            return
        with torch.no_grad():
            flat = points.detach().flatten(1).to(self.flat)
            near = torch.addmm(self.squares, flat, self.flat.T, alpha=-2).argmin(1)
        self.forwards.index_add_(0, near, torch.ones_like(near))

        def back(gradient: Tensor) -> None:
            self.backwards.index_add_(0, near, torch.ones_like(near))

        if isinstance(answers, Tensor) and answers.requires_grad:
            answers.register_hook(back)


@contextmanager
def watching(network: Any, images: Tensor) -> Iterator[Counts]:
    """The passes that are made meanwhile of a network (a module, ours or as `Foreign` or `Chancy` hold it)."""
    counts = Counts(images)
    handle = held(network).register_forward_hook(lambda _, given, answers: counts.see(given[0], answers))
    try:
        yield counts
    finally:
        handle.remove()


def held(network: Any) -> nn.Module:
    """The module that a caller knows: without what holds it here; of a function what holds that."""
    while isinstance(network, Chancy) or (isinstance(network, Foreign) and isinstance(network.given, nn.Module)):
        network = network.given
    return network
