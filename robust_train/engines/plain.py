"""The plain engine: PyTorch alone, in one process or in a process group."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from robust_train.engines.engine import Engine
from robust_train.engines.optim import filled
from robust_train.engines.place import join
from robust_train.nouns import Place
from robust_train.run import Run


class PlainEngine(Engine):
    """Plain PyTorch. With more than one rank, gradients are averaged in one flat all-reduce an update."""

    def __init__(self, run: Run, place: Place | None = None, dtype: torch.dtype = torch.float32) -> None:
        place = place or Place()
        if place.world > 1:
            join(place)
        super().__init__(run, place, dtype)
        self.copies = place.world

    def _backward(self, loss: Tensor, last: bool) -> None:
        (loss / self.count).backward()

    def _reduce_gradients(self) -> None:
        if self.place.world == 1:
            return
        gradients = self._gradients()
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.place.world
        distributed.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def _gradients(self) -> list[Tensor]:
        return filled(self.parameters.values())

    def _update(self) -> None:
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _discard(self) -> None:
        self.optimiser.zero_grad()
