"""What an objective is given, owns and gives: state, parts, losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robust_train.nouns.schedule import Schedule


@dataclass(frozen=True)
class State:
    """What the engine keeps for an objective between updates; the objective itself is frozen.

    counts: sums over the updates so far, float64 on the host, by the names that objectives give in `Loss.counts`.
    parts: the modules that the objective asked for in `Objective.parts`, by name.
    """

    counts: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A module that an objective owns beside the network: a generator, a head, a multiplier, a teacher.

        descends    w <- optimiser(w, d of[name] / d w)           with an optimiser (a negative scalar ascends)
        follows     a <- decay a + (1 - decay) w after an update  with average_of, in eval mode, without a gradient
        stays       as it is, or as `Objective.settle` moves it   with neither, in eval mode

    Alike on every rank; saved and restored with the network.
    """

    module: nn.Module  # its names are saved; it draws nothing at random but by the keys it is given
    optimiser: Any = None  # a robust_train.settings.optimiser.Optimiser; its lr may be a schedule
    average_of: str | None = None  # "network" (the module is then a copy of it), or another part's name
    decay: float | Schedule = 0.999  # how much of an average an update keeps

    def __post_init__(self) -> None:
        if self.optimiser is not None and self.average_of is not None:
            raise ValueError(f"average_of={self.average_of!r} and an optimiser: only one of them can move a part")


@dataclass(frozen=True)
class Loss:
    """What an objective makes of one micro-batch. Every micro-batch and rank of an update gives the same names.

    total: the scalar the network's parameters descend, a mean over the images; None: the network has no gradient in
        this update, and is left as it is: no step, no decay, no running statistic moves; `average` follows it only
        where the objective settles.
    metrics: scalars (means over the images), recorded as averages over the global batch; the engine detaches them.
    counts: scalars or vectors, summed over the global batch and added to `State.counts` after the update.
    of: {part: the scalar, a mean over the images, that the part's parameters descend}; no other parameter sees it.
        A part that is not named is left alone in this update.
    sums: tensors, summed over the global batch, handed to `Objective.settle` of this update and forgotten.
    """

    total: Tensor | None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    of: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)
