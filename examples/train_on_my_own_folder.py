"""Train on images of my own, a folder of class folders or a .csv of path,label, and measure how well the network holds.

    python examples/train_on_my_own_folder.py pictures/train pictures/val runs/mine [key=value ...]

The run is written to runs/mine/run.yaml; killed at any moment, the same command goes on. Any field of it may be given
as key=value: size of images, network, attack, updates (`python -m launch.train --help`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from robust_train.__main__ import main as train
from robust_train.data.files.own import classes_of
from robust_train.tools.eval import main as evaluate

RUN = """
name: mine
folder: {folder}
data: {{use: shards, train: {train}, validation: {validation}, classes: {classes}, size: 32, augment: crop-flip}}
network: {{model: {{use: small-cnn, widths: [16, 32, 64], strides: [1, 2, 2]}}, group: 16}}
objective: {{use: madry, attack: {{use: pgd, threat: {{use: linf, eps: 8/255}}, steps: 5, step_size: 2/255}}}}
optimiser: {{name: sgd, lr: 0.1}}
batch: 64
updates: 2000
validate: {{every: 200}}
"""


def main(words: list[str]) -> None:
    """Train, then attack the best checkpoint by PGD-50 on the validation images."""
    images, validation, folder, *changes = words
    run = Path(folder).with_suffix(".yaml")
    run.parent.mkdir(parents=True, exist_ok=True)
    names = classes_of(images)
    print(f"{len(names)} classes, in the order of their labels: {', '.join(names)}")
    run.write_text(RUN.format(folder=folder, train=images, validation=validation, classes=len(names)), encoding="utf-8")
    train([str(run), *changes])
    evaluate([folder])


if __name__ == "__main__":
    main(sys.argv[1:])
