"""Checkpoints to learn from, for images of the toys' shape."""

from __future__ import annotations

from pathlib import Path

import torch

from robust_train.data.shards import Shards
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallCNN
from robust_train.models.v1 import V1
from robust_train.objectives.plain import Plain
from robust_train.run import Run
from robust_train.trained import put

FRONT = V1(visual_degrees=0.5, ksize=5, stride=2, simple=4, complex=4, k_exc=20.0)


def teacher(folder: str | Path, seed: int, noisy: bool = False, classes: int = 5, channels: int = 1) -> str:
    """A checkpoint of a small CNN for 8x8 images with weights drawn from `seed`, written where it is not yet."""
    path = Path(folder) / f"teacher-{seed}-{noisy}-{classes}-{channels}"
    if (path / "manifest.json").exists():
        return str(path)
    data = Shards(train="none.tar", validation="none.tar", classes=classes, size=8, channels=channels)
    blueprint = Blueprint(SmallCNN((6, 6), (2, 1)), edits=(FRONT,) if noisy else (), group=4)
    run = Run(data=data, network=blueprint, objective=Plain(), updates=1, batch=16, seed=seed)
    built = run.build(torch.device("cpu"))
    weights = dict(built.model.state_dict())
    weights["head.weight"] = 5 * weights["head.weight"]  # so that it has something to say
    put(path, run.recipe(built), weights, {})
    return str(path)
