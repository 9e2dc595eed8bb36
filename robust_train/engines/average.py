"""An exponential average of the weights, each rank keeping its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from robust_train.nouns import at
from robust_train.settings.average import Average

if TYPE_CHECKING:
    from robust_train.engines.engine import Engine


class Averaged:
    """The running average of one engine's network."""

    def __init__(self, average: Average, engine: Engine) -> None:
        self.average = average
        self.owner = shares(tensors(engine), engine.place.world)
        self.kept = {
            name: value.detach().float().clone()
            for name, value in tensors(engine).items()
            if self.owner[name] == engine.place.rank
        }

    @torch.no_grad()
    def update(self, engine: Engine) -> None:
        done = engine.updates - 1
        decay = at(self.average.decay, done, engine.run.updates)
        if self.average.warmup:
            decay = min(decay, (1 + done) / (10 + done))
        now = tensors(engine)
        torch._foreach_lerp_(list(self.kept.values()), [now[name].float() for name in self.kept], 1 - decay)

    @contextmanager
    def inside(self, engine: Engine) -> Iterator[None]:
        """The average in the network's place; each owner sends its share to the others (a collective a tensor)."""
        now = tensors(engine)
        before = {name: value.detach().clone() for name, value in now.items()}
        with torch.no_grad():
            for name, value in now.items():
                if self.owner[name] == engine.place.rank:
                    value.copy_(self.kept[name])
                if engine.place.world > 1:
                    distributed.broadcast(value, self.owner[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in now.items():
                    value.copy_(before[name])


def tensors(engine: Engine) -> dict[str, Tensor]:
    """What is averaged: the parameters, and the floating buffers that are saved (BatchNorm's running statistics)."""
    saved = set(engine.module.model.state_dict())
    named: dict[str, Tensor] = dict(engine.module.model.named_parameters())
    named |= {n: b for n, b in engine.module.model.named_buffers() if n in saved and b.is_floating_point()}
    return {name: value.data for name, value in named.items()}


def shares(named: dict[str, Tensor], world: int) -> dict[str, int]:
    """{name: rank that keeps it}: largest first to the least loaded rank, the same on every rank."""
    load = [0] * world
    owner = {}
    for name in sorted(named, key=lambda name: (-named[name].numel(), name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += named[name].numel()
    return owner
