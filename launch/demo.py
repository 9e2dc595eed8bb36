"""The demo: adversarial training by Ray and DeepSpeed on embedded images, beside plain training."""

from __future__ import annotations

from pathlib import Path

import torch

from robust_train import command
from robust_train.launch.cluster import launch
from robust_train.run import Run


def demo(path: Path) -> None:
    """Train the demo on two ranks and its plain contrast on one; print both, a picture and what to do next."""
    robust = Run.load(path)
    plain = Run.load(path.with_name("demo-plain.yaml"))
    print(f"1/2 {robust.name}: PGD training on {robust.cluster.devices} DeepSpeed ranks under Ray ({robust.folder})")
    rows = {"PGD training": launch(robust)}
    print(f"2/2 {plain.name}: the same network trained on clean images alone, in this process ({plain.folder})")
    torch.set_num_threads(1)  # as each of the ranks had; two threads gain nothing on so small a network
    rows["plain training"] = command.here(plain)
    command.table(rows, "digits, L-inf eps 0.15: accuracy on 360 validation images")
    pictures = sorted((robust.path / "pictures").glob("attack-*.png"))
    if pictures:
        print(f"picture: {pictures[-1]} (clean, adversarial and difference images)")
    print(
        f"""next:
  .venv/bin/python -m tools.eval {robust.folder}                       accuracy against eps, per class, flags, a page
  .venv/bin/python -m tools.eval {robust.folder} --attack autoattack   what the strongest attacks leave (minutes)
  .venv/bin/python -m launch.train configs/demo.yaml seed=1 folder=runs/demo-1       another seed
  .venv/bin/python -m launch.train configs/cifar/small.yaml --help                   every field of a run
  .venv/bin/python -m launch.train --list objectives                                 what else there is"""
    )
