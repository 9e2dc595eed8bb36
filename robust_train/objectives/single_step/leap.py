"""One gradient of the images, and where it leads: what all methods of one step share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Norm, attacked
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key, bits, uniform
from robust_train.losses import cross_entropy
from robust_train.nouns import Goal, Raising


def look(
    network: Any, points: Tensor, targets: Tensor, key: Key, norm: Norm, goal: Goal | None = None
) -> tuple[Tensor, Tensor]:
    """(gradient of the goal at points [B, ...], logits there [B, C]), as an attack sees them: nothing has a graph.

    goal: the cross-entropy where none is named. Costs 2 forward passes.
    """
    with attacked(network, norm, key):
        see = Sight(network, points, targets, key, goal or Raising(cross_entropy))
        _, slope, logits = see.slope(points, key, 0)
    return slope, logits


def signs(images: Tensor, key: Key) -> Tensor:
    """+1 or -1 for each pixel, as likely."""
    return (bits(key, images.shape, images.device) >> 31).to(images.dtype) * 2 - 1


def spread(images: Tensor, key: Key, eps: float) -> Tensor:
    """U(-eps, eps) for each pixel."""
    return eps * (2 * uniform(key, images.shape, images.device, images.dtype) - 1)


def within(images: Tensor, points: Tensor, eps: float) -> Tensor:
    """Points brought into the ball of eps around the images, and into [0, 1]."""
    return torch.maximum(torch.minimum(points, images + eps), images - eps).clamp(0, 1)


def grouped(values: Tensor, group: int) -> list[Tensor]:
    """Rows of consecutive images that meet, `group` at a time."""
    return list(values.split(group))
