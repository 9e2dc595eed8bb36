"""The class that an attack drives its images towards, where a caller names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key

Towards = int | tuple[int, ...] | None
"""One class for all images, or one for each; None: the attack chooses. A tensor or list [N] is made a tuple.

An image's place is its row in the key: its place in the data set in an evaluation, in the batch where the key names no
rows. An image whose label it is is left as it is.
"""


def classes_of(value: Any) -> Towards:
    """What a caller said, as it is kept. Raises ValueError for what is no class and no list of classes."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    several = isinstance(value, (list, tuple))
    for one in value if several else [value]:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise ValueError(f"towards={one!r} is no class: give a number from 0, or one for each image")
    return tuple(value) if several else value


def aimed(towards: int | tuple[int, ...], key: Key, labels: Tensor, classes: int) -> Tensor:
    """[b] the class of each image, by the rows that the key names. Raises ValueError where there is none for one."""
    if isinstance(towards, int):
        found = torch.full_like(labels, towards)
    else:
        rows = torch.arange(len(labels)) if key.row is None else key.row.cpu()
        if len(rows) and int(rows.amax()) >= len(towards):
            raise ValueError(
                f"towards names {len(towards)} classes, and image {int(rows.amax())} is attacked: give one for each"
            )
        found = torch.tensor(towards)[rows].to(labels)
    if len(found) and int(found.amax()) >= classes:
        raise ValueError(f"towards={int(found.amax())}: the network has {classes} classes, 0 to {classes - 1}")
    return found
