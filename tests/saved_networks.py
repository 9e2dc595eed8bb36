"""Checkpoints that were not trained: written in a moment, read as any others."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from robust_train.attacks.pgd import PGD
from robust_train.data.digits import Digits
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallCNN, SmallResNet
from robust_train.models.v1 import V1
from robust_train.nouns import Dataset
from robust_train.objectives.madry import Madry
from robust_train.run import Run
from robust_train.threats.linf import Linf
from robust_train.trained import put

CNN = Blueprint(SmallCNN(widths=(4, 8), strides=(2, 2)), group=16)
RESNET = Blueprint(SmallResNet(widths=(4, 8, 8)), mean=(0.5,), std=(0.5,), group=16)
SIGHT = V1(visual_degrees=1.0, ksize=5, stride=2, simple=3, complex=3, sf_max=11.2, relu_after=False)
BEHIND_V1 = Blueprint(SmallCNN(widths=(4, 8), strides=(2, 2)), edits=(SIGHT,), group=16)


def saved(folder: Path, network: Blueprint, data: Dataset, seed: int = 0) -> Path:
    """The folder of a run with one checkpoint, of a network as its seed makes it; its logits are far from flat."""
    attack = PGD(Linf(0.1), steps=1, step_size=0.1)
    run = Run(data, network, Madry(attack), updates=1, batch=16, name=folder.name, folder=str(folder), seed=seed)
    built = run.build(torch.device("cpu"))
    texts = {"run.yaml": run.dump()}
    if isinstance(data, Digits):
        data.prepare()
        texts["data.json"] = json.dumps(data.checksums())
    put(folder / "checkpoints" / "00000001", run.recipe(built), built.model.state_dict(), texts)
    return folder
