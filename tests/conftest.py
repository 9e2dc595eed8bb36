"""Runs that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

pytest_plugins = ["tests.tiers"]

# no deadline: a shared machine is slow now and then, and speed is no property that is tested
hypothesis.settings.register_profile("shared", deadline=None)
hypothesis.settings.load_profile("shared")

SMALL = """
name: small
data: {{use: digits, folder: {folder}/digits}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective:
  use: madry
  attack: {{use: pgd, threat: {{use: linf, eps: 0.1}}, steps: 2, step_size: 0.05}}
updates: 4
batch: 32
folder: {folder}/run
optimiser: {{name: sgd, lr: 0.05}}
average: {{decay: 0.5}}
validate: {{images: 32}}
checkpoint: {{every: 2}}
records: {{wandb: "off", progress: "off"}}
"""


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a run on the digits, which is done: its folder, `run`, and the data, `digits`, lie beside it."""
    from robust_train.__main__ import main

    folder = tmp_path_factory.mktemp("small")
    path = folder / "small.yaml"
    path.write_text(SMALL.format(folder=folder), encoding="utf-8")
    main([str(path)])
    return path


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray cluster on this machine, which every command of this process joins that asks for devices."""
    from robust_train.launch.cluster import joined

    with joined(None):
        yield
