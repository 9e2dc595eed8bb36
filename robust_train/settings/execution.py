"""How updates are carried out: what is sharded, what a device holds at once, and what becomes of a bad update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Guard:
    """What a loss that is not finite, or explodes, leads to. Nothing is ever changed by such an update."""

    policy: Literal["stop", "skip", "rollback"] = "stop"  # or leave it out; or leave it out from a checkpoint on
    limit: float = 1e4  # a loss above this has exploded
    most: int = 10  # updates left out before the run stops all the same

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit={self.limit:g} must be positive: a loss above it has exploded")
        if self.most < 0:
            raise ValueError(f"most={self.most} must not be negative: it counts updates that may be left out")


@dataclass(frozen=True)
class Execution:
    """How updates are computed. Changes speed and memory, never the numbers."""

    zero: Literal[0, 1, 2] = 0  # DeepSpeed ZeRO stage: sharded are 1: optimiser state, 2: gradients too
    micro_batch: int | None = None  # images a device holds at once; a rank's share is accumulated in such; null: all

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch={self.micro_batch} must be at least 1: it counts images")
