"""Dropout whose masks are functions of a key: the same key gives the same mask, wherever and how often it is drawn.

Word e of a module's mask for an image is word e of Philox under the key, at the module's own stream and the image's
row. So masks of a micro-batch are rows of the batch's masks, and matched masks (two forwards under one key),
frozen masks during an attack and recomputed activations are one mechanism. Off in eval mode, as nn.Dropout is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust_train.keyed.draws import words
from robust_train.keyed.mode import Draw, Held


class KeyedDrop(nn.Module):
    """A module that drops with probability `rate` in train mode, by the masks of its network."""

    def __init__(self, rate: float, stream: int, held: Held) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop rate of {rate:g} is not in [0, 1): at 1 nothing would be left")
        self.rate = rate
        self.stream = stream  # one for each module of a network: their masks are independent
        self.held = held

    @property
    def drops(self) -> bool:
        """Whether a forward draws a mask now."""
        return self.training and self.rate > 0 and self.held.now.masks != "off"

    def keep(self, rows: int, count: int, device: torch.device) -> Tensor:
        """bool [rows, count], true with probability 1 - rate (to 2^-32)."""
        return self.words(rows, count, device) >= round(self.rate * 2**32)

    def words(self, rows: int, count: int, device: torch.device) -> Tensor:
        """int64 [rows, count] of 32-bit words.

        Where a layer sees n windows an image, window i of an image goes on where window i - 1 ended, so that its words
        too depend on the image's row alone.
        """
        mode = self.held.now
        masks = mode.masks
        if not isinstance(masks, Draw):
            raise ValueError(
                "dropout needs a key: call the network inside `with network.drops(key)` (None drops nothing)"
            )
        row = masks.rows(rows, mode.images, device, "drop masks")
        key = masks.words.to(device)
        return words((key[0], key[1]), row, rows // max(1, len(row)) * count, self.stream).view(rows, count)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, stream={self.stream}"


class KeyedDropout(KeyedDrop):
    """y = x m / (1 - p) with m ~ Bernoulli(1 - p) for each element of [B, ...].

    channels: for each channel of [B, C, ...], as nn.Dropout2d does.
    A module called twice in one forward draws the same words twice.
    """

    def __init__(self, p: float, stream: int, held: Held, channels: bool = False) -> None:
        super().__init__(p, stream, held)
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


class KeyedTableDropout(KeyedDropout):
    """The same of a table [...] that all images share, such as a map from relative positions: one mask a key.

    Its first axis counts no images, so its words are those of row 0 under the key, on every rank and in every
    micro-batch. Elsewhere such a layer draws anew for each device's forward.
    """

    def keep(self, rows: int, count: int, device: torch.device) -> Tensor:
        masks = self.held.now.masks
        if not isinstance(masks, Draw):
            return super().keep(rows, count, device)  # which says what is missing
        key = masks.words.to(device)
        drawn = words((key[0], key[1]), torch.zeros(1, dtype=torch.int64, device=device), rows * count, self.stream)
        return drawn.view(rows, count) >= round(self.rate * 2**32)


class KeyedDropPath(KeyedDrop):
    """Stochastic depth: y = x m / (1 - p) with one m ~ Bernoulli(1 - p) an image; `scale` false leaves 1 / (1 - p) out.

    Huang et al. 2016 (arXiv 1603.09382), scaled while training and not at test.
    """

    def __init__(self, p: float, stream: int, held: Held, scale: bool = True) -> None:
        super().__init__(p, stream, held)
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
        self, p: float, stream: int, held: Held, prefix: int = 1, ordered: bool = False, indices: bool = False
    ) -> None:
        super().__init__(p, stream, held)
        self.prefix = prefix
        self.ordered = ordered
        self.indices = indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        if not self.drops:
            return (x, None) if self.indices else x
        patches = x.shape[1] - self.prefix
        drawn = self.words(len(x), patches, x.device)
        # stable: equal words, once in 2^32 pairs, are in one order on every device
        kept = drawn.argsort(dim=1, stable=True)[:, : max(1, int(patches * (1 - self.rate)))]
        if self.ordered:
            kept = kept.sort(dim=1)[0]
        chosen = x[:, self.prefix :].gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        tokens = torch.cat([x[:, : self.prefix], chosen], dim=1)
        return (tokens, kept) if self.indices else tokens
