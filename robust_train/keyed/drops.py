"""Dropout whose masks are functions of a key: the same key gives the same mask, wherever and how often it is drawn.

Word e of a module's mask for an image is word e of Philox under the key, at the module's own stream and the image's
row. So masks of a micro-batch are rows of the batch's masks, and matched masks (two forwards under one key),
frozen masks during an attack and recomputed activations are one mechanism. Off in eval mode, as nn.Dropout is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_train.keyed.draws import words
from robust_train.keyed.key import Key


@dataclass(eq=False)
class Masks:
    """What the drop modules of one network draw from at the moment; shared by all of them.

    with masks.using(key): logits = model(images)        # key.rows(position): one row an image
    """

    key: Tensor | None = None  # [2] int64: Philox's key words, never ints: a compiled network recompiles on those
    row: Tensor | None = None  # [B] int64, one an image; None: 0, 1, 2, ... of whatever is masked
    off: bool = False  # whether dropping is switched off, in train mode too

    @contextmanager
    def using(self, key: Key | None) -> Iterator[None]:
        """Draw masks from `key` and its rows; None: drop nothing. What was used before comes back afterwards."""
        before = self.key, self.row, self.off
        if key is None:
            self.key, self.row, self.off = None, None, True
        else:
            device = "cpu" if key.row is None else key.row.device
            # not torch.tensor(..., device=device), which would wait for the device
            self.key = torch.tensor(key.words, dtype=torch.int64).to(device, non_blocking=True)
            self.row, self.off = key.row, False
        try:
            yield
        finally:
            self.key, self.row, self.off = before

    def words(self, rows: int, count: int, stream: int, device: torch.device) -> Tensor:
        """int64 [rows, count] of 32-bit words.

        rows = n B where a layer cuts each image into n windows, those of an image side by side (Swin): window i of
        an image goes on where window i - 1 ended, so that its words too depend on the image's row alone.
        """
        if self.key is None:
            raise ValueError(
                "dropout needs a key: call the network inside `with network.drops(key)` (None drops nothing)"
            )
        row = torch.arange(rows, device=device) if self.row is None else self.row.to(device)
        if len(row) == 0 or rows % len(row):
            raise ValueError(
                f"the key of the drop masks names {len(row)} rows, but a layer sees {rows}: "
                "take `key.rows(position)` with one row for each image of the batch"
            )
        key = self.key.to(device)
        return words((key[0], key[1]), row, rows // len(row) * count, stream).view(rows, count)


class KeyedDrop(nn.Module):
    """A module that drops with probability `rate` in train mode, by the masks of its network."""

    def __init__(self, rate: float, stream: int, masks: Masks) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop rate of {rate:g} is not in [0, 1): at 1 nothing would be left")
        self.rate = rate
        self.stream = stream  # one for each module of a network: their masks are independent
        self.masks = masks

    @property
    def drops(self) -> bool:
        """Whether a forward draws a mask now."""
        return self.training and self.rate > 0 and not self.masks.off

    def keep(self, rows: int, count: int, device: torch.device) -> Tensor:
        """bool [rows, count], true with probability 1 - rate (to 2^-32)."""
        return self.masks.words(rows, count, self.stream, device) >= round(self.rate * 2**32)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, stream={self.stream}"


class KeyedDropout(KeyedDrop):
    """y = x m / (1 - p) with m ~ Bernoulli(1 - p) for each element of [B, ...].

    channels: for each channel of [B, C, ...], as nn.Dropout2d does.
    A module called twice in one forward draws the same words twice.
    """

    def __init__(self, p: float, stream: int, masks: Masks, channels: bool = False) -> None:
        super().__init__(p, stream, masks)
        self.channels = channels

    @property
    def p(self) -> float:
        """The rate, by nn.Dropout's name: attention layers of timm read it."""
        return self.rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.drops:
            return x
        shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if self.channels else x.shape
        keep = self.keep(len(x), math.prod(shape[1:]), x.device).view(shape)
        return x * keep * (1 / (1 - self.rate))  # the scale by itself: rounded to x's half precision it would be biased


class KeyedDropPath(KeyedDrop):
    """Stochastic depth: y = x m / (1 - p) with one m ~ Bernoulli(1 - p) an image; `scale` false leaves 1 / (1 - p) out.

    Huang et al. 2016 (arXiv 1603.09382), scaled while training and not at test.
    """

    def __init__(self, p: float, stream: int, masks: Masks, scale: bool = True) -> None:
        super().__init__(p, stream, masks)
        self.scale = scale

    @property
    def drop_prob(self) -> float:
        """The rate, by timm's name."""
        return self.rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.drops:
            return x
        y = x * self.keep(len(x), 1, x.device).view(-1, *[1] * (x.dim() - 1))
        return y * (1 / (1 - self.rate)) if self.scale else y


class KeyedPatchDropout(KeyedDrop):
    """Keeps max(1, floor(L (1 - p))) of the L patches of tokens [B, prefix + L, D], a uniform choice for each image.

    Liu et al. 2022 (arXiv 2208.07220). prefix: class and register tokens, always kept. ordered: patches keep their
    order. indices: returns (tokens, kept patches [B, K] int64, or None where nothing is dropped).
    """

    def __init__(
        self, p: float, stream: int, masks: Masks, prefix: int = 1, ordered: bool = False, indices: bool = False
    ) -> None:
        super().__init__(p, stream, masks)
        self.prefix = prefix
        self.ordered = ordered
        self.indices = indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        if not self.drops:
            return (x, None) if self.indices else x
        patches = x.shape[1] - self.prefix
        drawn = self.masks.words(len(x), patches, self.stream, x.device)
        # stable: equal words, once in 2^32 pairs, are in one order on every device
        kept = drawn.argsort(dim=1, stable=True)[:, : max(1, int(patches * (1 - self.rate)))]
        if self.ordered:
            kept = kept.sort(dim=1)[0]
        chosen = x[:, self.prefix :].gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        tokens = torch.cat([x[:, : self.prefix], chosen], dim=1)
        return (tokens, kept) if self.indices else tokens
