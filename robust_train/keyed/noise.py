"""Noise inside a network as a function of a key: drawn, fixed or off, the same on any devices and micro-batches.

Element e of a module's noise for an image comes from Philox under the key of the forward, at the module's own stream
and the image's row. It is drawn in training and in evaluation: such noise is part of what the network is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robust_train.keyed.key import Key
from robust_train.keyed.philox import LOW, philox

Mode = Literal["drawn", "fixed", "off"]
BLOCK = 2**16  # counters drawn at once: what of them is held fits a core's cache


@dataclass(eq=False)
class Noise:
    """What the noisy modules of one network draw from at the moment; shared by all of them.

        with noise.using(key): ...               forward number n draws from key.at(n): each forward other noise
        with noise.using(key, exact=True): ...   every forward draws from `key`: matched noise
        with noise.switched("off"): ...          none; "fixed": one draw an image row, whatever key there is

    Without a key the forwards of a process draw from one stream, one after the other.
    """

    mode: Mode = "drawn"
    key: Key = field(default_factory=lambda: Key(0))  # of the forwards to come
    exact: bool = False  # whether they all draw from `key` itself
    forwards: int = 0  # since the key was named
    fixed: Key = field(default_factory=lambda: Key(0).of("fixed"))  # of all forwards where noise is fixed
    words: Tensor | None = None  # [2] int64: Philox's key words of this forward, never ints: a compiled network

    @contextmanager
    def using(self, key: Key, exact: bool = False) -> Iterator[None]:
        """Draw from `key` and its rows. What was used before comes back afterwards."""
        with self._as(key=key, exact=exact, forwards=0):
            yield

    @contextmanager
    def switched(self, mode: Mode) -> Iterator[None]:
        """Noise drawn, fixed or off for a while."""
        with self._as(mode=mode):
            yield

    @contextmanager
    def _as(self, **fields: object) -> Iterator[None]:
        before = {name: getattr(self, name) for name in ("mode", "key", "exact", "forwards", "words")}
        vars(self).update(fields)
        try:
            yield
        finally:
            if "key" not in fields:
                before |= {"forwards": self.forwards}
            vars(self).update(before)

    def begin(self) -> None:
        """A forward begins."""
        key = self.key if self.exact else self.key.at(self.forwards)
        if self.mode == "fixed":
            key = self.fixed
        self.words = torch.tensor(key.words, dtype=torch.int64)
        self.forwards += 1

    def rows(self, count: int, device: torch.device) -> Tensor:
        """[count] int64: the rows of the images of this forward; 0, 1, ... where the key names none, or others."""
        row = self.key.row
        return torch.arange(count, device=device) if row is None or len(row) != count else row.to(device)


class KeyedNoise(nn.Module):
    """N(0, 1) for each element of [B, ...], by the key of its network; None where noise is off."""

    def __init__(self) -> None:
        super().__init__()
        self.source = Noise()  # the network's, once it is inside one
        self.stream = 0

    def forward(self, like: Tensor) -> Tensor | None:
        """Noise of the shape, type and device of `like` [B, ...], without a graph."""
        if self.source.mode == "off":
            return None
        if self.source.words is None:
            self.source.begin()
        words = self.source.words.to(like.device, non_blocking=True)  # type: ignore[union-attr]
        return standard_normal((words[0], words[1]), self.source.rows(len(like), like.device), like, self.stream)


def standard_normal(key: tuple[Tensor, Tensor], row: Tensor, like: Tensor, stream: int) -> Tensor:
    """N(0, 1), of the shape of `like` [B, ...]: both numbers of Box and Muller, sqrt(-2 ln u) (cos, sin)(2 pi v).

    In float32, u in (0, 1] and v in [0, 1) multiples of 2^-24, so no number is beyond 5.8. Element e of a row of E
    comes from counter e % q, q = ceil(E / 4), words (0, 2) and (1, 3), cosines first. Blocks that fit a cache are
    several times faster.
    """
    count = math.prod(like.shape[1:])
    quarter = (count + 3) // 4
    out = like.new_empty(len(row), 4, quarter, dtype=torch.float32)
    counter = torch.arange(quarter, device=row.device)[None]
    rows = max(1, BLOCK // max(quarter, 1)) if row.device.type == "cpu" else len(row)
    for first in range(0, len(row), max(rows, 1)):
        some = row[first : first + rows, None]
        drawn = torch.broadcast_tensors(*philox((counter, stream, some & LOW, (some >> 32) & LOW), key))
        half = [(word >> 8).float() * 2**-24 for word in drawn]
        for index in range(2):
            radius, angle = (-2 * (1 - half[index]).log()).sqrt(), (2 * math.pi) * half[index + 2]
            out[first : first + rows, index] = radius * angle.cos()
            out[first : first + rows, index + 2] = radius * angle.sin()
    return out.flatten(1)[:, :count].reshape(like.shape).to(like.dtype)


def connect(model: nn.Module, source: Noise) -> list[str]:
    """Let every noisy module of `model` draw from `source`, each its own stream; their names."""
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, KeyedNoise):
            module.source, module.stream = source, len(names)
            names.append(name)
    return names
