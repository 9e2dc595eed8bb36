"""Run folders as a training leaves them, made of nothing but numbers."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from robust_train.records.jsonl import line
from robust_train.run import Run

RUN = """name: <b>small</b>
data: {use: digits}
network: {model: {use: small-cnn, widths: [4, 8], strides: [2, 2]}}
objective: {use: madry, attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}
updates: 40
batch: 32
folder: runs/small
"""


def folder(path: Path, seed: int = 0, shift: float = 0.0, ended: bool = True, **fields: object) -> Path:
    """A run of 40 updates whose loss is 2 - update / 40 + shift; validated twice; one picture."""
    (path / "pictures").mkdir(parents=True)
    run = Run.load(RUN, [f"seed={seed}", *(f"{key}={value}" for key, value in fields.items())])
    (path / "run.yaml").write_text(run.dump())
    lines = []
    for update in range(40):
        loss = float("nan") if update == 7 else 2 - update / 40 + shift
        told = {"loss/robust": loss, "accuracy/attacked": update / 80, "gradient/norm": 1.5, "lr": 0.1}
        lines.append(line({"update": update, **told}))
        if update in (19, 39):
            lines.append(line({"update": update, "accuracy/clean": 0.5 + update / 100, "validation/images": 64.0}))
    lines.append(line({"update": 40, "accuracy/clean": 0.9, "accuracy/pgd50": 0.25, "validation/images": 360.0}))
    (path / "metrics.jsonl").write_bytes(b"".join(lines if ended else lines[:12]))
    timed = [line({"start": "then"}), *(line({"update": update, "images/s": 100.0}) for update in range(0, 40, 10))]
    (path / "timing.jsonl").write_bytes(b"".join(timed))
    if ended:
        end = {"updates": 40, "accuracy/clean": 0.9 + shift, "accuracy/pgd50": 0.25 + shift, "validation/images": 360.0}
        (path / "summary.json").write_text(json.dumps(end))
        Image.new("RGB", (64, 48), (200, 60, 60)).save(path / "pictures" / "attack-40.png")
    return path
