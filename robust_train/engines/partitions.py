"""Weights that lie in pieces on the ranks (ZeRO 3), and a whole copy of them where one is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robust_train.engines.average import Averaged, averageable, shares
from robust_train.engines.holding import Holding
from robust_train.models.network import Network
from robust_train.nouns import Place

BUCKET = 2**26
"""Numbers that one all-gather brings at most to each rank, where whole tensors are wanted: 256 MiB of float32."""


class Partitions(Holding):
    """The network of an engine whose ranks hold a piece of every weight. BatchNorm's statistics are whole everywhere.

    A piece is a weight's numbers in a row, rank after rank, filled up to a multiple of the world size. DeepSpeed
    gathers a layer's pieces before its forward and its backward, and lets go of them afterwards; so all ranks must do
    the same forwards in the same order, and nothing may ask for a weight at another time. What cannot keep to that (a
    verdict, a picture, an objective's own move) is given a whole copy, gathered in one go.

    copy: an empty network of the same build, filled while it is wanted. kept: fill it once an update, and let attacks
    on the network be answered by it.
    """

    def __init__(self, module: Network, place: Place, zero: Any, copy: Network, kept: bool) -> None:
        super().__init__(module, place)
        self._zero, self.copy, self.kept = zero, copy, kept
        self._trained = [parameter.requires_grad for parameter in copy.parameters()]
        self.copy.train().requires_grad_(False)
        self._empty()
        module.cut = True
        if kept:
            module.stand_in(self.copy)
        # whoever asks the model itself for its weights is given them whole, if all ranks ask
        module.model.register_state_dict_post_hook(lambda *given: self._complete(*given))

    def refresh(self) -> None:
        if self.kept:
            self._fill(self._pieces(), self._buffers())

    @contextmanager
    def whole(self, average: Averaged | None = None) -> Iterator[Network]:
        pieces, buffers = self._pieces(), self._buffers()
        if average is not None:
            pieces = {name: average.kept.get(name, value) for name, value in pieces.items()}
            buffers = {name: average.kept.get(name, value) for name, value in buffers.items()}
        self._fill(pieces, buffers)
        for parameter, trained in zip(self.copy.parameters(), self._trained, strict=True):
            parameter.requires_grad_(trained)
        try:
            yield self.copy
        finally:
            self.copy.requires_grad_(False)
            if self.kept:
                self.refresh()  # an attack asks it next, and may ask before the next update begins
            else:
                self._empty()

    @contextmanager
    def changing(self) -> Iterator[Network]:
        with torch.no_grad(), self.whole() as network:
            yield network
            there = dict(network.model.named_parameters())
            for name, piece in self._pieces().items():
                self.cut(there[name], piece)
            for name, value in self._buffers().items():
                value.copy_(network.model.get_buffer(name))
            # what small weights are kept whole beside their pieces is let go of, to be gathered anew
            self._zero._partition_all_parameters()

    def weights(self) -> dict[str, Tensor]:
        saved = self.module.model.state_dict()
        return saved if self.place.leads else {}

    def average(self) -> Averaged:
        return Averaged({name: value.detach().float().clone() for name, value in self.followed().items()})

    def followed(self) -> Mapping[str, Tensor]:
        """Each rank's pieces of the weights, and all of the statistics: an average of those costs no collective."""
        statistics = averageable(self.module.model).keys() - self._pieces().keys()
        return {**self._pieces(), **{name: value for name, value in self._buffers().items() if name in statistics}}

    def shares(self, average: Averaged) -> dict[str, Tensor]:
        pieces = {name: average.kept[name] for name in self._pieces()}
        statistics = {name: value for name, value in average.kept.items() if name not in pieces}
        owner = shares({**pieces, **statistics}, self.place.world)
        mine = {name: value for name, value in statistics.items() if owner[name] == self.place.rank}
        for name, value in self._gathered(pieces):
            if owner[name] == self.place.rank:
                mine[name] = value.cpu().clone()
        return mine

    def put(self, average: Averaged, saved: Mapping[str, Tensor]) -> None:
        pieces = self._pieces()
        for name, value in average.kept.items():
            if name in pieces:
                self.cut(saved[name], value)
            else:
                value.copy_(saved[name])

    def _complete(self, model: nn.Module, saved: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        """Put whole tensors, on the host, in the places of a state dict's empty ones."""
        names: dict[int, list[str]] = {}  # of tied weights all names, in a model that may hold them under several
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        own = dict(model.named_parameters())
        for name, value in self._gathered(self._pieces()):
            whole = value.cpu().clone()  # a device need not hold a second network
            for place in names[id(own[name])]:
                saved[prefix + place] = whole

    # -- pieces -----------------------------------------------------------------------------------

    def _pieces(self) -> dict[str, Tensor]:
        """{name: this rank's piece} of all weights, those that are not trained too."""
        named: Any = self.module.model.named_parameters()
        return {name: parameter.ds_tensor.data for name, parameter in named}

    def _buffers(self) -> dict[str, Tensor]:
        return dict(self.module.model.named_buffers())

    def cut(self, whole: Tensor, piece: Tensor) -> None:
        """Put this rank's numbers of a whole tensor in its piece."""
        mine = whole.detach().flatten()[self.place.rank * len(piece) :][: len(piece)]
        piece[: len(mine)].copy_(mine)

    def _gathered(self, pieces: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, whole tensor) from every rank's pieces: an all-gather for each BUCKET numbers of them."""
        named: Any = dict(self.module.model.named_parameters())
        for names in _buckets(pieces, BUCKET // self.place.world):
            flat = torch.cat([pieces[name].to(self.module.mean.device) for name in names])
            rows = flat.new_empty(self.place.world * len(flat))
            distributed.all_gather_into_tensor(rows, flat)
            lengths = [len(pieces[name]) for name in names]
            for name, columns in zip(names, rows.view(self.place.world, -1).split(lengths, 1), strict=True):
                whole = columns.reshape(-1)[: named[name].ds_numel]
                yield name, whole.view(named[name].ds_shape)

    def _fill(self, pieces: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        there = dict(self.copy.model.named_parameters())
        for name, value in self._gathered(pieces):
            there[name].data = value.to(there[name].dtype).clone()  # a clone: not the whole bucket's memory
        for name, value in buffers.items():
            self.copy.model.get_buffer(name).copy_(value)

    def _empty(self) -> None:
        """Let go of the copy's weights."""
        for parameter in self.copy.parameters():
            parameter.data = parameter.data.new_empty(0)


def _buckets(pieces: Mapping[str, Tensor], most: int) -> Iterator[list[str]]:
    """The names in their order, in groups of at most so many numbers, or of one."""
    names: list[str] = []
    count = 0
    for name, piece in pieces.items():
        if names and count + len(piece) > most:
            yield names
            names, count = [], 0
        names.append(name)
        count += len(piece)
    if names:
        yield names
