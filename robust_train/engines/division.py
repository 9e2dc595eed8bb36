"""What a device holds at once of a global batch."""

from __future__ import annotations

from robust_train.read.errors import ConfigError
from robust_train.run import Run


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
