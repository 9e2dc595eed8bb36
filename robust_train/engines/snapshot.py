"""All that the next update depends on, as a value: what a checkpoint holds of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """An engine between two updates. Taken on a rank it holds that rank's shares; read from disk, all of them."""

    updates: int  # done so far
    left_out: tuple[int, ...]  # updates that were found to be bad and are passed over
    weights: dict[str, Tensor]  # the network's, by timm's names
    optimiser: dict[str, Tensor]  # its state, by PARAMETER/KEY: shares
    numbers: dict[str, Any]  # of that state what is no tensor
    average: dict[str, Tensor]  # of the weights: shares; empty where none is kept
    counts: dict[str, Tensor]  # State.counts
    parts: dict[str, Tensor] = field(default_factory=dict)  # the objective's modules, averages and optimisers
    part_numbers: dict[str, Any] = field(default_factory=dict)  # of their optimisers what is no tensor
