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

    zero: Literal[0, 1, 2, 3] = (
        0  # DeepSpeed ZeRO stage: cut over ranks are 1: optimiser state, 2: gradients, 3: weights
    )
    micro_batch: int | None = None  # images a device holds at once; a rank's share is accumulated in such; null: all
    copy: bool = False  # zero=3: gather whole weights once an update, and attack that copy: no gathers in attacks
    persist: int = 100_000  # zero=3: a weight tensor of at most so many numbers stays whole on every rank
    offload: tuple[Literal["optimiser", "weights"], ...] = ()  # kept in the host's memory; weights: under zero=3

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch={self.micro_batch} must be at least 1: it counts images")
        if self.persist < 0:
            raise ValueError(f"persist={self.persist} must not be negative: it counts numbers of a tensor")
        if self.copy and self.zero != 3:
            raise ValueError(f"copy=true with zero={self.zero}: weights are whole there; say zero=3, or copy=false")
        least = {"optimiser": 1, "weights": 3}
        for name in self.offload:
            if self.zero < least[name]:
                raise ValueError(
                    f"offload={name} with zero={self.zero}: DeepSpeed keeps in the host's memory what it has cut over "
                    f"the ranks; say zero={least[name]}{' or more' if least[name] < 3 else ''}"
                )
