"""An exponential average of a run's weights."""

from __future__ import annotations

from dataclasses import dataclass

from robust_train.read.registry import Number


@dataclass(frozen=True)
class Average:
    """An exponential moving average of the weights, validated and kept beside them.

        a <- d a + (1 - d) w after each update, with d = min(decay, (1 + u) / (10 + u)) where warmup is set

    Kept in float32, BatchNorm's running statistics averaged alike. Each rank keeps and saves its share of the tensors.
    """

    decay: Number = 0.9995  # d: how much of the average an update keeps
    warmup: bool = True  # a shorter memory in the first updates, so that the start is forgotten
