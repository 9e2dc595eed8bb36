"""How updates are carried out: what is sharded, what a device holds at once, and what becomes of a bad update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robust_train.read.errors import ConfigError

if TYPE_CHECKING:
    from robust_train.run import Run


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


def micro_batch_size(run: Run, world: int) -> int:
    """Images a device holds at once: the most of a rank's share in whole groups, up to `engine.micro_batch`."""
    batch, unit = run.batch, run.unit()
    divisors = [ranks for ranks in range(1, batch + 1) if batch % ranks == 0]
    if batch % world:
        raise ConfigError(
            f"batch={batch} does not divide over {world} ranks. Use {_listed(divisors)} ranks, or another batch."
        )
    share = batch // world
    if share % unit:
        fits = [ranks for ranks in divisors if batch // ranks % unit == 0]
        raise ConfigError(
            f"batch={batch} over {world} ranks is {share} images a rank, which is not whole groups of {unit}: "
            f"BatchNorm (network.group) and mixing work on consecutive images. Use {_listed(fits)} ranks, another "
            "batch, or other groups (that changes the numbers)."
        )
    most = run.engine.micro_batch or share
    sizes = [size for size in range(unit, share + 1, unit) if share % size == 0 and size <= most]
    if not sizes:
        raise ConfigError(
            f"engine.micro_batch={most} is below one group of {unit} images, and groups are not cut. "
            f"Use engine.micro_batch={unit} or more."
        )
    return sizes[-1]


def _listed(numbers: list[int]) -> str:
    if not numbers:
        return "no number of"
    return ", ".join(map(str, numbers[:12])) + (", ..." if len(numbers) > 12 else "")
