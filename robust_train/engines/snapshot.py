"""All that the next update depends on, as a value: what a checkpoint holds of an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robust_train.engines.average import shares
from robust_train.models.weights import fit_weights
from robust_train.read.errors import CheckpointError

if TYPE_CHECKING:
    from robust_train.engines.engine import Engine


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


def take(engine: Engine) -> Snapshot:
    """An engine's snapshot. Every rank takes one; each has its share of what is cut."""
    owner = shares(engine.parameters, engine.place.world)
    kept: dict[str, Tensor] = {}
    mine: dict[str, Any] = {}
    for name in engine.parameters:
        for key, value in engine.optimiser_state(name).items():
            if owner[name] == engine.place.rank:
                (kept if isinstance(value, Tensor) else mine)[f"{name}/{key}"] = value
    numbers: dict[str, Any] = {}
    for theirs in engine.gather(mine):
        numbers |= theirs
    average = {} if engine.averaged is None else engine.holding.shares(engine.averaged)
    left_out = tuple(sorted(engine.left_out))
    weights = engine.holding.weights()
    return Snapshot(engine.updates, left_out, weights, kept, numbers, average, engine.counts, *engine.parts.held())


def put(engine: Engine, there: Snapshot, source: str) -> None:
    """Put an engine where a snapshot was, of any layout. CheckpointError where it does not fit."""
    with engine.changing() as network:
        fit_weights(network.model, there.weights, source)
    states: dict[str, dict[str, Any]] = {name: {} for name in engine.parameters}
    for path, value in [*there.optimiser.items(), *there.numbers.items()]:
        name, _, key = path.rpartition("/")
        states[name][key] = value
    for name, state in states.items():
        engine.set_optimiser_state(name, state)
    if engine.averaged is not None:
        if not there.average:
            raise CheckpointError(f"{source} holds no average, and the run keeps one. Say average=null, or begin anew.")
        engine.holding.put(engine.averaged, there.average)
    engine.parts.hold(there.parts, there.part_numbers, source)
    engine.counts, engine.updates, engine.left_out = dict(there.counts), there.updates, set(there.left_out)
