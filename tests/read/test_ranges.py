"""What numbers may be: finite, and what their name says, in every class that a run may hold."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from robust_train.check import in_range
from robust_train.read.errors import ConfigError
from robust_train.read.ranges import BELOW_ONE, COUNT, NAMED, NOT_NEGATIVE, POSITIVE, SHARE
from robust_train.read.registry import registries
from robust_train.read.strict import read
from robust_train.run import Run
from robust_train.settings.average import Average
from robust_train.settings.cluster import Cluster
from robust_train.settings.execution import Execution, Guard
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.tracking import Tracking
from robust_train.settings.validate import Probe, Validate
from tests.registered import written

DEMO = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"
SETTINGS = (Average, Cluster, Execution, Guard, Keep, Optimiser, Tracking, Validate, Probe)
OUTSIDE = {id(COUNT): 0, id(POSITIVE): 0, id(NOT_NEGATIVE): -1, id(SHARE): 1.5, id(BELOW_ONE): 1.0}
CLASSES = {
    **{cls.__name__: (cls, {}) for cls in SETTINGS},
    **{
        f"{noun}/{use}": (cls, {key: value for key, value in (written(cls) or [{}])[0].items() if key != "use"})
        for noun, registry in registries.items()
        for use, cls in registry.items()
    },
}


def numeric(cls: type) -> list[str]:
    hints = get_type_hints(cls, include_extras=True)
    return [f.name for f in fields(cls) if f.init and any(word in str(hints[f.name]) for word in ("int", "float"))]


def mistakes(cls: type, tree: dict) -> list[str]:
    wrong: list[str] = []
    read(cls, tree, "x", wrong)
    return wrong


@pytest.mark.parametrize("name", CLASSES)
def test_no_number_of_any_class_is_infinite_or_none_at_all(name):
    cls, example = CLASSES[name]
    for field in numeric(cls):
        for value in (math.nan, math.inf, -math.inf):
            assert mistakes(cls, {**example, field: value}), f"{name}.{field} takes {value}"


@pytest.mark.parametrize("name", CLASSES)
def test_a_number_is_what_its_name_says_wherever_it_stands(name):
    cls, example = CLASSES[name]
    if "NETWORK/" in str(example):
        return
    assert not mistakes(cls, example)
    for field in set(numeric(cls)) & NAMED.keys():
        outside = OUTSIDE.get(id(NAMED[field]), -2)
        if isinstance(example.get(field, getattr(cls, field, None)), (tuple, list)):
            outside = [outside]
        assert mistakes(cls, {**example, field: outside}), f"{name}.{field} takes {outside}"


@pytest.mark.parametrize(
    "setting",
    """cluster.devices=0 cluster.devices=-1 cluster.cpus=-1 cluster.restarts=-1 cluster.rate=-1 optimiser.lr=-1
    optimiser.lr=.nan optimiser.lr=.inf optimiser.momentum=1 optimiser.momentum=-0.1 optimiser.weight_decay=-1
    optimiser.clip=-1 optimiser.betas=[0.9,1] seed=-1 batch=0 batch=-8 updates=0 validate.images=0 validate.chunk=0
    validate.every=-1 validate.every=.nan checkpoint.every=-5 checkpoint.keep=0 records.every=0 network.group=0
    on_nonfinite.limit=.nan on_nonfinite.most=-1 engine.micro_batch=0 objective.attack.steps=-1
    objective.attack.step_size=0 objective.attack.step_size=-1/255 objective.attack.threat.eps=-1
    objective.attack.threat.eps=8 objective.attack.threat.eps=.nan objective.attack.restarts=0 average.decay=1.5
    data.workers=-1 objective.smoothing=1""".split(),  # noqa: SIM905
)
def test_a_run_with_a_number_out_of_its_range_is_refused_in_one_message(setting):
    key, _, _ = setting.partition("=")
    with pytest.raises(ConfigError, match="1 mistake") as refused:
        Run.load(DEMO, [setting])
    assert key.rpartition(".")[2] in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("optimiser.lr={use: cosine, peak: -0.1}", "optimiser"),
        ("optimiser.lr={use: linear, points: [[0, 0.1], [50%, 0.1], [51%, -1], [52%, 0.1], [100%, 0]]}", "optimiser"),
        ("objective.attack.threat.eps={use: ramp, to: 8, updates: 50%}", "objective"),
        ("average={decay: {use: ramp, to: 2, updates: 90%}}", "average"),
    ],
)
def test_a_schedule_that_leads_out_of_its_range_is_found_before_the_first_update(setting, field):
    with pytest.raises(ConfigError, match=rf"run.{field}, at update"):
        in_range(Run.load(DEMO, [setting]))
    in_range(Run.load(DEMO))
