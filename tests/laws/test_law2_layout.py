"""Law 2: the numbers do not depend on where they ran.

A global batch of 16 images on one rank, on two, or in four parts: one curve of losses. BatchNorm, mixing and the
weights' perturbation work in groups of 4; drop masks and recomputed activations are on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robust_train.engines.average import Average
from robust_train.engines.execution import Execution
from robust_train.engines.optim import Optimiser
from robust_train.engines.plain import PlainEngine
from robust_train.engines.schedule import Cosine
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Objective, Place
from tests.examples import examples
from tests.ranks import on_ranks
from tests.toys import ToyNetwork, toy_run, trained, weights

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

LONG = ("madry",)  # followed over 200 updates
UPDATES, SHORT = 200, 6
FLOAT32 = ("madry", "generalized, sample with weights")  # followed by DeepSpeed over 20 updates, at every stage

Curves = dict[Any, tuple[list[dict[str, float]], dict[str, torch.Tensor]]]


def run_of(objective: Objective, updates: int, execution: Execution):
    network = Blueprint(ToyNetwork(), group=4, checkpointing=True)
    optimiser = Optimiser(name="momentum", lr=Cosine(0.02, warmup=0.1), weight_decay=1e-3, clip=2.0)
    changes = {"network": network, "optimiser": optimiser, "average": Average(0.9)}
    return toy_run(objective, updates=updates, engine=execution, **changes)


def in_float64(place: Place, part: int | None) -> Curves:
    """{example: metrics of each update and last weights} of the plain engine."""
    found = {}
    for name, objective in examples(1).items():
        run = run_of(objective, UPDATES if name in LONG else SHORT, Execution(part=part))
        engine = PlainEngine(run, place, torch.float64)
        found[name] = trained(engine), weights(engine)
    return found


def in_float32(place: Place, part: int | None) -> Curves:
    """{(ZeRO stage, example): metrics of each update and last weights} of DeepSpeed."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    found = {}
    for stage in (0, 1, 2):
        for name, objective in examples(1).items():
            if name in FLOAT32 or stage == 2:
                run = run_of(objective, 20 if name in FLOAT32 else 3, Execution(stage, part))
                with DeepSpeedEngine(run, place) as engine:
                    found[stage, name] = trained(engine), weights(engine)
    return found


def both(place: Place, part: int | None) -> tuple[Curves, Curves]:
    return in_float64(place, part), in_float32(place, part)


@pytest.fixture(scope="module")
def whole() -> tuple[Curves, Curves]:
    """One rank, 16 images at once."""
    return on_ranks(1, both, None)[0]


@pytest.fixture(scope="module")
def divided() -> dict[str, tuple[Curves, Curves]]:
    """The other layouts; every rank has the same numbers."""
    found = {"1 rank x 4 parts of 4": on_ranks(1, both, 4)[0]}
    for name, part in (("2 ranks x 8", None), ("2 ranks x 2 parts of 4", 4)):
        first, second = on_ranks(2, both, part)
        for mine, theirs in zip(first, second, strict=True):
            assert all(mine[key][0] == theirs[key][0] for key in mine)
        found[name] = first
    return found


def assert_one_curve(one: tuple[Any, Any], other: tuple[Any, Any], tolerance: float) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", examples(1))
def test_any_layout_gives_one_curve_in_float64(whole: Any, divided: Any, name: str) -> None:
    """To 1e-10: losses, accuracies, gradient norms, weights and running statistics."""
    for layout, (found, _) in divided.items():
        assert len(found[name][0]) == (UPDATES if name in LONG else SHORT), layout
        assert_one_curve(whole[0][name], found[name], 1e-10)


def test_training_gets_somewhere_on_the_way(whole: Any) -> None:
    """So that equal curves are curves."""
    for name in LONG:
        lines = whole[0][name][0]
        assert lines[-1]["loss/robust"] < 0.5 * lines[0]["loss/robust"]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("name", FLOAT32)
def test_deepspeed_gives_the_same_curve_over_20_updates(whole: Any, divided: Any, name: str, stage: int) -> None:
    """To 1e-5 in float32, at every ZeRO stage and layout, against plain PyTorch on one rank."""
    plain = in_float32_plain(name, 20)
    for _, found in [whole, *divided.values()]:
        assert_one_curve(plain, found[stage, name], 1e-5)


@pytest.mark.parametrize("name", [name for name in examples(1) if name not in FLOAT32])
def test_deepspeed_begins_the_same_curve_of_every_objective(whole: Any, divided: Any, name: str) -> None:
    plain = in_float32_plain(name, 3)
    for _, found in [whole, *divided.values()]:
        assert_one_curve(plain, found[2, name], 1e-5)


def in_float32_plain(name: str, updates: int) -> tuple[Any, Any]:
    engine = PlainEngine(run_of(examples(1)[name], updates, Execution()))
    return trained(engine), weights(engine)
