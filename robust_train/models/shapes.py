"""What a model says of samples that it cannot take."""

from __future__ import annotations

from robust_train.nouns import Shape
from robust_train.read.errors import ConfigError


def square(shape: Shape, what: str) -> tuple[int, int]:
    """(channels, side) of square images [channels, side, side]. ConfigError, in the name of `what`, for all else."""
    if len(shape) == 3 and shape[1] == shape[2]:
        return shape[0], shape[1]
    raise ConfigError(
        f"{what} takes square images (channels, side, side), but the data set's samples are {written(shape)}: name "
        "another model, or another data set."
    )


def written(shape: Shape) -> str:
    """3x224x224."""
    return "x".join(map(str, shape))
