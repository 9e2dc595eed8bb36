"""Checkpoints of a run: an engine's snapshot, what was judged and how far the records are, on disk and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robust_train import checkpoint
from robust_train.engines.engine import Engine
from robust_train.engines.snapshot import Snapshot
from robust_train.judging import Judge, Judged
from robust_train.read import uses
from robust_train.read.parse import dump
from robust_train.records import Records
from robust_train.run import Run


def save(run: Run, engine: Engine, judge: Judge, records: Records) -> None:
    """Write a checkpoint of everything the next update depends on, and close the metrics so far with it.

    weights.safetensors (as timm names them), optimiser-RANK.safetensors and average-RANK.safetensors (each rank its
    share, by parameter), state.safetensors (counts), parts.safetensors (what the objective owns, where it owns
    anything), position.json, run.yaml, network.yaml, data.json, manifest.json; uses/: the source of the
    run's own modules.
    """
    place, now = engine.place, engine.snapshot()
    folder = run.path / "checkpoints" / f"{now.updates:08d}"
    judge.keep(folder.name)
    files = {f"optimiser-{place.rank:05d}.safetensors": now.optimiser}
    if now.average:
        files[f"average-{place.rank:05d}.safetensors"] = now.average
    if place.leads:
        files |= {"weights.safetensors": now.weights, "state.safetensors": now.counts}
        if now.parts:
            files["parts.safetensors"] = now.parts
    position = {
        "updates": now.updates,
        **asdict(judge.judged),
        "left_out": list(now.left_out),
        "optimiser": now.numbers,
        "parts": now.part_numbers,
        "records": records.close_segment(now.updates),
    }
    texts = {f"{uses.FOLDER}/{path}": text for path, text in uses.sources(run.uses).items()}
    texts |= {
        "run.yaml": run.dump(),
        "network.yaml": dump(run.recipe(engine.module)),
        "position.json": json.dumps(position, indent=1),
        "data.json": json.dumps(run.data.known(), indent=1),
    }
    checkpoint.write(folder, files, texts, place, engine.gather)
    if place.leads:
        checkpoint.mark_best(run.path, judge.judged.best_checkpoint, judge.judged.best)
        checkpoint.prune(run.path, run.checkpoint.keep)


def load(run: Run, engine: Engine, judge: Judge, folder: Path) -> dict[str, Any]:
    """Put an engine and its judge where a checkpoint was; what the records are to know of it.

    Any world size, any ZeRO stage. Raises CheckpointError where it is damaged, or holds another network.
    """
    checkpoint.verify(folder)
    position = json.loads((folder / "position.json").read_text(encoding="utf-8"))
    there = Snapshot(
        position["updates"],
        tuple(position["left_out"]),
        checkpoint.read(folder, "weights"),
        checkpoint.read(folder, "optimiser"),
        position["optimiser"],
        checkpoint.read(folder, "average"),
        checkpoint.read(folder, "state"),
        checkpoint.read(folder, "parts"),
        position["parts"],
    )
    engine.restore(there, str(folder))
    judge.judged = Judged(position["best"], position["best_checkpoint"], position["probed"], position["collapses"])
    judge.improved = False
    if engine.place.leads:
        checkpoint.mark_best(run.path, judge.judged.best_checkpoint, judge.judged.best)
    return position["records"]
