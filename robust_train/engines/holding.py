"""Where an engine's weights lie, and what is made of them whole: whole on every rank, here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robust_train.engines.average import Averaged, averageable
from robust_train.models.network import Network
from robust_train.nouns import Place


class Holding:
    """The network of an engine whose ranks all hold all of it. `engines/partitions.py` is the other one (ZeRO 3)."""

    def __init__(self, module: Network, place: Place) -> None:
        self.module, self.place = module, place

    def refresh(self) -> None:
        """Told before the first forward of an update."""

    @contextmanager
    def whole(self, average: Averaged | None = None) -> Iterator[Network]:
        """The network with all its weights, to be read: its forwards use no collective. All ranks enter together.

        average: its weights are in the network's place.
        """
        if average is None:
            yield self.module
            return
        with average.inside(averageable(self.module.model), self.place):
            yield self.module

    @contextmanager
    def changing(self) -> Iterator[Network]:
        """The same, to be changed: its weights and buffers afterwards are the network's, on every rank alike."""
        with torch.no_grad():
            yield self.module

    def numbers(self) -> tuple[int, int]:
        """Numbers in all weights together, and in those that are trained."""
        named: Any = self.module.parameters()
        counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in named]
        return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)

    def weights(self) -> dict[str, Tensor]:
        """{timm's name: whole tensor} of the model, buffers too; ranks enter together, the leading one needs it."""
        return self.module.model.state_dict()

    def average(self) -> Averaged:
        """A new average, where the network stands."""
        return Averaged.shared(self.followed(), self.place)

    def followed(self) -> Mapping[str, Tensor]:
        """What a run's average follows, as far as this rank keeps it."""
        return averageable(self.module.model)

    def shares(self, average: Averaged) -> dict[str, Tensor]:
        """This rank's whole tensors of an average, for a checkpoint."""
        return average.kept

    def put(self, average: Averaged, saved: Mapping[str, Tensor]) -> None:
        """Take an average back from a checkpoint's whole tensors."""
        for name, value in average.kept.items():
            value.copy_(saved[name])

    def cut(self, whole: Tensor, piece: Tensor) -> None:
        """Put this rank's numbers of a whole tensor in its piece: all of them."""
        piece.copy_(whole.view_as(piece))
