"""Every objective trains a network whose front end draws noise."""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.engines.plain import PlainEngine
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallCNN
from tests.registered import every_objective
from tests.teachers import FRONT
from tests.toys import toy_run, trained

NETWORK = Blueprint(SmallCNN((6, 6), (2, 1)), edits=(FRONT,), group=4)


@pytest.mark.parametrize("name", every_objective(1))
def test_every_objective_trains_behind_v1_and_the_same_each_time(name: str) -> None:
    """Its losses are finite, the trained layers move, the filters do not, and the seed alone decides the noise."""
    engines = [PlainEngine(toy_run(every_objective(1)[name], network=NETWORK, updates=3)) for _ in range(2)]
    before = {key: value.clone() for key, value in engines[0].module.model.state_dict().items()}
    assert engines[0].module.noisy == ["block1.block.noise"]
    lines = [trained(engine) for engine in engines]
    assert lines[0] == lines[1]
    assert all(math.isfinite(value) for line in lines[0] for value in line.values())
    after = engines[0].module.model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert {"block1.bottleneck.weight", "head.weight"} <= moved
    assert not {"block1.block.weight", "block1.block.sampled"} & moved
