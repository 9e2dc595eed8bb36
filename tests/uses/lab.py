"""A user's own package, my_lab, as a folder outside of this project: an objective, a model, a threat model."""

from __future__ import annotations

from pathlib import Path

SIZES = """
WIDTHS = (4, 8)
"""
HALF = '''"""Training on clean and attacked images in equal parts, of the lab's own."""

from dataclasses import dataclass

from my_lab.sizes import WIDTHS
from robust_train.losses import cross_entropy
from robust_train.models.small_cnn import SmallCNN
from robust_train.nouns import Attack, Loss, Objective
from robust_train.read.registry import models, objectives, threats
from robust_train.threats.linf import Linf


@objectives.register("half")
@dataclass(frozen=True)
class Half(Objective):
    """Half of the loss on clean images, half on attacked ones."""

    attack: Attack  # what makes x'

    def __call__(self, network, batch, key, state):
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"))
        with network.drops(key.of("drops")):
            clean = cross_entropy(network(batch.images), batch.targets).mean()
            robust = cross_entropy(network(adversarial), batch.targets).mean()
        return Loss((clean + robust) / 2, {"loss/clean": clean, "loss/robust": robust})

    def cost(self):
        return self.attack.cost() + 6


@models.register("lab-cnn")
@dataclass(frozen=True)
class LabCNN(SmallCNN):
    """A small CNN of the lab's sizes."""

    widths: tuple[int, ...] = WIDTHS
    strides: tuple[int, ...] = (2, 2)


@threats.register("cube")
@dataclass(frozen=True)
class Cube(Linf):
    """The L-inf ball under the lab's own name."""
'''
RUN = """
uses: [my_lab.half]
name: lab
data: {{use: digits, folder: {folder}/digits}}
network: {{model: lab-cnn, group: 16}}
objective: {{use: half, attack: {{use: pgd, threat: {{use: cube, eps: 0.1}}, steps: 1, step_size: 0.1}}}}
updates: 4
batch: 32
folder: {folder}/run
optimiser: {{name: sgd, lr: 0.05}}
validate: {{every: 0, images: 32}}
checkpoint: {{every: 2}}
records: {{wandb: "off", progress: "off"}}
"""


def lab(folder: Path, **changes: str) -> Path:
    """The package in `folder`/lab, to be found from there, and the run's YAML beside it. changes: text for text."""
    package = folder / "lab" / "my_lab"
    package.mkdir(parents=True)
    half = HALF
    for old, new in changes.items():
        half = half.replace(old, new)
    for name, text in {"__init__": "", "half": half, "sizes": SIZES}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    path = folder / "lab" / "half.yaml"
    path.write_text(RUN.format(folder=folder), encoding="utf-8")
    return path
