"""Exponential averages of named tensors: of a run's weights, each rank keeping its share, or of a part's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn

from robust_train.nouns import Place


class Averaged:
    """a <- d a + (1 - d) w, of the tensors in `kept`.

    owner: {name: the rank that keeps it} of all tensors that are averaged; None: this process keeps them all.
    """

    def __init__(self, kept: Mapping[str, Tensor], owner: Mapping[str, int] | None = None) -> None:
        self.kept = dict(kept)
        self.owner = owner or {}

    @classmethod
    def shared(cls, now: Mapping[str, Tensor], place: Place) -> Averaged:
        """An average that begins with `now`, in float32, dealt over the ranks."""
        owner = shares(now, place.world)
        mine = {name: value.detach().float().clone() for name, value in now.items() if owner[name] == place.rank}
        return cls(mine, owner)

    @torch.no_grad()
    def follow(self, now: Mapping[str, Tensor], decay: float) -> None:
        """Move towards `now`; decay: how much of the average is kept, 0 to begin anew."""
        if self.kept:  # a rank may have no share
            theirs = [now[name].to(value.dtype) for name, value in self.kept.items()]
            torch._foreach_lerp_(list(self.kept.values()), theirs, 1 - decay)

    @contextmanager
    def inside(self, now: Mapping[str, Tensor], place: Place) -> Iterator[None]:
        """The average in the place of `now`; each owner sends its share to the others (a collective a tensor)."""
        before = {name: value.detach().clone() for name, value in now.items()}
        with torch.no_grad():
            for name, value in now.items():
                if self.owner[name] == place.rank:
                    value.copy_(self.kept[name])
                if place.world > 1:
                    distributed.broadcast(value, self.owner[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in now.items():
                    value.copy_(before[name])


def averageable(module: nn.Module) -> dict[str, Tensor]:
    """What is averaged: the parameters, and the floating buffers that are saved (BatchNorm's running statistics)."""
    saved = set(module.state_dict())
    named: dict[str, Tensor] = dict(module.named_parameters())
    named |= {n: b for n, b in module.named_buffers() if n in saved and b.is_floating_point()}
    return {name: value.data for name, value in named.items()}


def shares(named: Mapping[str, Tensor], world: int) -> dict[str, int]:
    """{name: rank that keeps it}: largest first to the least loaded rank, the same on every rank."""
    load = [0] * world
    owner = {}
    numbers = {name: getattr(value, "ds_numel", value.numel()) for name, value in named.items()}  # whole, under ZeRO 3
    for name in sorted(named, key=lambda name: (-numbers[name], name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += numbers[name]
    return owner
