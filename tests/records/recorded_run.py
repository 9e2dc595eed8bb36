"""A run with nothing but records: its metrics are functions of the update."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from robust_train import disk
from robust_train.nouns import Place
from robust_train.records import Records
from robust_train.settings.tracking import Tracking

QUIET = Tracking(wandb="off", progress="off", every=1)


@dataclass(frozen=True)
class Toy:
    """What Records asks of a run."""

    folder: str
    name: str = "toy"
    updates: int = 40
    records: Tracking = field(default=QUIET)

    def dump(self) -> str:
        return f"name: {self.name}\nupdates: {self.updates}\nobjective: {{use: madry, attack: {{steps: 7}}}}\n"


@dataclass(frozen=True)
class Expected:
    """What Records asks of a forecast."""

    batch: int = 64
    devices: int = 2
    rate: float | None = None
    unit: str = "kWh"


def metrics(update: int) -> dict[str, float]:
    """Numbers with many digits."""
    return {"loss": math.exp(-update / 7) / 3, "accuracy/train": math.sin(update) ** 2}


def work(run: Toy, every: int = 5) -> None:
    """The loop: it goes on from the last whole checkpoint, which is one file here."""
    saved = Path(run.folder) / "checkpoint.json"
    start, closed = json.loads(saved.read_text()) if saved.exists() else (0, None)
    with Records(run, Place()) as records:
        records.resume(start, closed)
        for update in range(start, run.updates):
            records.add(update, metrics(update))
            if update % 4 == 3:
                records.add(update, {"accuracy/pgd20": 1 / (update + 2)})
            if (update + 1) % every == 0:
                closed = records.close_segment(update + 1)
                disk.write_text(saved, json.dumps([update + 1, closed]))
        records.add(run.updates, {"accuracy/clean": 0.5})
