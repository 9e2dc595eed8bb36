"""Noise inside a network as a function of a key: drawn, fixed or off, the same on any devices and micro-batches.

Element e of a module's noise for an image comes from Philox under the key of the forward, at the module's own stream
and the image's row. It is drawn in training and in evaluation: such noise is part of what the network is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust_train.keyed.mode import Held
from robust_train.keyed.philox import LOW, philox

BLOCK = 2**16  # counters drawn at once: what of them is held fits a core's cache


class KeyedNoise(nn.Module):
    """N(0, 1) for each element of [B, ...], by the key of its network; None where noise is off."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()  # the network's, once it is inside one
        self.stream = 0

    def forward(self, like: Tensor) -> Tensor | None:
        """Noise of the shape, type and device of `like` [B, ...], without a graph.

        like [n B, ...]: where a layer cuts each image into n windows, they share what is drawn for its row.
        """
        mode = self.held.now
        if mode.noisy == "off":
            return None
        drawn = mode.drawn or mode.of_forward(len(like), like.device).drawn  # outside a network: a forward of its own
        assert drawn is not None
        words, row = drawn.words.to(like.device), drawn.rows(len(like), mode.images, like.device, "noise")
        whole = like if len(row) == len(like) else like.unflatten(0, (len(row), -1))
        return standard_normal((words[0], words[1]), row, whole, self.stream).reshape(like.shape)


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


def connect(model: nn.Module, held: Held) -> list[str]:
    """Let every noisy module of `model` draw from the mode in `held`, each its own stream; their names."""
    names: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, KeyedNoise):
            module.held, module.stream = held, len(names)
            names.append(name)
    return names
