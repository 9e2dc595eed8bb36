"""What of an engine is in a checkpoint: weights, optimiser state per parameter, average, state, position."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robust_train import checkpoint
from robust_train.engines.average import shares
from robust_train.models.weights import fit_weights
from robust_train.read import uses
from robust_train.read.errors import CheckpointError
from robust_train.read.parse import dump

if TYPE_CHECKING:
    from robust_train.engines.engine import Engine
    from robust_train.records import Records


def save(engine: Engine, records: Records) -> None:
    """Write a checkpoint of everything the next update depends on, and close the metrics so far with it.

    weights.safetensors (as timm names them), optimiser-RANK.safetensors and average-RANK.safetensors (each rank its
    share, by parameter), state.safetensors, position.json, run.yaml, network.yaml, data.json, manifest.json;
    uses/: the source of the run's own modules.
    """
    run, place = engine.run, engine.place
    folder = run.path / "checkpoints" / f"{engine.updates:08d}"
    if engine.improved:
        engine.best_checkpoint = folder.name
    kept, numbers = _optimiser(engine)
    files = {f"optimiser-{place.rank:05d}.safetensors": kept}
    if engine.averaged is not None:
        files[f"average-{place.rank:05d}.safetensors"] = engine.averaged.kept
    if place.leads:
        files["weights.safetensors"] = engine.module.model.state_dict()
        files["state.safetensors"] = dict(engine.state)
    position = {
        "updates": engine.updates,
        "best": engine.best,
        "best_checkpoint": engine.best_checkpoint,
        "probed": engine.probed,
        "left_out": sorted(engine.left_out),
        "optimiser": numbers,
        "records": records.close_segment(engine.updates),
    }
    texts = {f"{uses.FOLDER}/{path}": text for path, text in uses.sources(run.uses).items()}
    texts |= {
        "run.yaml": run.dump(),
        "network.yaml": dump(run.recipe(engine.module)),
        "position.json": json.dumps(position, indent=1),
        "data.json": json.dumps(run.data.checksums(), indent=1),
    }
    checkpoint.write(folder, files, texts, place, engine.gather)
    if place.leads:
        checkpoint.mark_best(run.path, engine.best_checkpoint, engine.best)
        checkpoint.prune(run.path, run.checkpoint.keep)
    engine.improved = False


def load(engine: Engine, folder: Path) -> dict[str, Any]:
    """Put an engine where a checkpoint was; what the records are to know of it. Any world size, any ZeRO stage.

    Raises CheckpointError where the checkpoint is damaged, or holds another network.
    """
    checkpoint.verify(folder)
    position = json.loads((folder / "position.json").read_text(encoding="utf-8"))
    fit_weights(engine.module.model, checkpoint.read(folder, "weights"), str(folder))
    engine.weights_changed()
    states: dict[str, dict[str, Any]] = {name: {} for name in engine.parameters}
    for path, value in [*checkpoint.read(folder, "optimiser").items(), *position["optimiser"].items()]:
        name, _, key = path.rpartition("/")
        states[name][key] = value
    for name, state in states.items():
        engine.set_optimiser_state(name, state)
    if engine.averaged is not None:
        average = checkpoint.read(folder, "average")
        if not average:
            raise CheckpointError(f"{folder} holds no average, and the run keeps one. Say average=null, or begin anew.")
        for name, value in engine.averaged.kept.items():
            value.copy_(average[name])
    engine.state = checkpoint.read(folder, "state")
    engine.updates, engine.probed = position["updates"], position["probed"]
    engine.best, engine.best_checkpoint = position["best"], position["best_checkpoint"]
    engine.left_out = set(position["left_out"])
    engine.improved = False
    if engine.place.leads:
        checkpoint.mark_best(engine.run.path, engine.best_checkpoint, engine.best)
    return position["records"]


def _optimiser(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """This rank's share of the optimiser's state by PARAMETER/KEY; and all numbers in it that are no tensors."""
    owner = shares(dict(engine.parameters), engine.place.world)
    tensors: dict[str, Tensor] = {}
    mine: dict[str, Any] = {}
    for name in engine.parameters:
        for key, value in engine.optimiser_state(name).items():
            if owner[name] == engine.place.rank:
                (tensors if isinstance(value, Tensor) else mine)[f"{name}/{key}"] = value
    numbers: dict[str, Any] = {}
    for theirs in engine.gather(mine):
        numbers |= theirs
    return tensors, numbers
