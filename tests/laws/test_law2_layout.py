"""Law 2: the numbers do not depend on where they ran.

A global batch of 16 images on one rank, on two, or in four parts: one curve of losses. BatchNorm, mixing and the
weights' perturbation work in groups of 4; drop masks and recomputed activations are on. Some train behind a V1 front
end, whose noise is drawn in the attack and in the update.

In `make test` every example is followed in float64, and in float32 the first of each class; in `make test-all`, marked
`long`, every example at full length, at every stage of ZeRO.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_train.attacks.pgd import PGD
from robust_train.engines.plain import PlainEngine
from robust_train.engines.schedule import Cosine
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.v1 import V1
from robust_train.nouns import Objective, Place
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.objectives.trades import Trades
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.optimiser import Optimiser
from robust_train.threats.linf import Linf
from tests.ranks import on_ranks
from tests.registered import every_objective
from tests.toys import ToyNetwork, toy_run, trained, weights

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ALL = tuple(every_objective(1))
LONG = ("madry",)  # followed over 200 updates in `make test` too
UPDATES, SHORT, BRIEF = 200, 6, 15
FAR, NEAR = 20, 8  # in float32: of the examples in FLOAT32, and of the first of each class
NOISY = V1(visual_degrees=0.5, ksize=5, stride=2, simple=6, complex=6, sf_max=11.3)
STAGES = (0, 1, 2)  # of ZeRO; in `make test` all of them follow the examples in FLOAT32, the others follow stage 2
SAMPLED = next(  # with counts, and perturbed weights
    name for name, one in every_objective(1).items() if getattr(one, "join", "") == "sample" and one.weights
)
FLOAT32 = ("madry", SAMPLED)
FIRST = tuple(name for name in ALL if name == every_objective(1)[name].use)
HOUR = pytest.mark.timeout(3600)


Curves = dict[Any, tuple[list[dict[str, float]], dict[str, torch.Tensor]]]


def in_float32_too() -> dict[str, Objective]:
    """The examples, TRADES from a random start: its own is where its divergence has hardly a gradient.

    There p and q differ by a thousandth, so that float32 rounding, not the layout, decides some of the first signs; in
    float64 it is followed from its own start.
    """
    found = every_objective(1)
    trades = found["trades"]
    assert isinstance(trades, Trades)
    return {**found, "trades": replace(trades, attack=replace(trades.attack, start="random"))}


def noisy_examples() -> dict[str, Objective]:
    """Those that are followed behind a V1 front end too."""
    linf = PGD(Linf(0.1), 1, 0.05, norm="group", eot=2)
    return {"plain, V1 noise": Plain(), "madry, V1 noise": Madry(linf)}


def run_of(objective: Objective, updates: int, execution: Execution, noisy: bool = False, smooth: bool = False):
    network = Blueprint(ToyNetwork(smooth=smooth), group=4, checkpointing=True)
    if noisy:
        network = Blueprint(SmallResNet((4, 6)), edits=(NOISY,), group=4)
    optimiser = Optimiser(name="momentum", lr=Cosine(0.02, warmup="10%"), weight_decay=1e-3, clip=2.0)
    changes = {"network": network, "optimiser": optimiser, "average": Average(0.9)}
    return toy_run(objective, updates=updates, engine=execution, **changes)


def in_float64(place: Place, part: int | None, full: bool) -> Curves:
    """{example: metrics of each update and last weights} of the plain engine; full: every example over 200 updates."""
    found = {}
    for name, objective in (every_objective(1) | noisy_examples()).items():
        noisy = name in noisy_examples()
        updates = UPDATES if full or name in LONG else BRIEF if noisy else SHORT
        run = run_of(objective, updates, Execution(micro_batch=part), noisy)
        engine = PlainEngine(run, place, torch.float64)
        found[name] = trained(engine), weights(engine)
    return found


def followed(full: bool) -> list[tuple[str, int]]:
    """(example, ZeRO stage) of what is followed in float32; at 3 madry, more of it in tests/engines/test_zero3.py."""
    some = [] if full else [(name, 2) for name in FIRST if name not in FLOAT32]
    return [(name, stage) for name in (ALL if full else FLOAT32) for stage in STAGES] + some + [("madry", 3)]


def float32_run(name: str, objective: Objective, execution: Execution, full: bool):
    """Through tanh: at a kink a processor's rounding decides a slope, and curves part by any distance within updates.

    What is left of the kind are the signs of gradients: a few thousand an update, each of which an error of some 1e-8
    of its size turns with a chance of 1e-8.
    """
    return run_of(objective, FAR if full or name in FLOAT32 else NEAR, execution, smooth=True)


def in_float32(place: Place, part: int | None, full: bool) -> Curves:
    """{(example, ZeRO stage): metrics of each update and last weights} of DeepSpeed."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    found = {}
    for name, stage in followed(full):
        run = float32_run(name, in_float32_too()[name], Execution(stage, part, persist=0), full)
        with DeepSpeedEngine(run, place) as engine:
            found[name, stage] = trained(engine), weights(engine)
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process write here; those of other ranks in a folder of theirs."""
    monkeypatch.chdir(tmp_path)


WHOLE = {"1 rank x 16": (1, None), "1 rank x 4 parts of 4": (1, 4), "2 ranks x 8": (2, None)}
LAYOUTS = {"float64": WHOLE, "float32": {**WHOLE, "2 ranks x 2 parts of 4": (2, 4)}}


def on_this_layout(place: Place, full: bool) -> dict[tuple[str, str], Curves]:
    """{(precision, layout): curves} of every layout of this world size: a process for all of them."""
    work = {"float64": in_float64, "float32": in_float32}
    found = {}
    for precision, layouts in LAYOUTS.items():
        for layout, (world, part) in layouts.items():
            if world == place.world:
                found[precision, layout] = work[precision](place, part, full)
    return found


def on_every_layout(full: bool) -> dict[tuple[str, str], Curves]:
    """{(precision, layout): curves}; on each all ranks have the same numbers."""
    found: dict[tuple[str, str], Curves] = {}
    for world in (1, 2):
        first, *others = on_ranks(world, on_this_layout, full)
        for other in others:
            for layout, curves in first.items():
                assert all(other[layout][key][0] == lines for key, (lines, _) in curves.items())
        found |= first
    return found


@pytest.fixture(scope="module")
def curves() -> dict[tuple[str, str], Curves]:
    return on_every_layout(full=False)


@pytest.fixture(scope="module")
def curves_at_full_length() -> dict[tuple[str, str], Curves]:
    return on_every_layout(full=True)


def assert_one_curve(one: tuple[Any, Any], other: tuple[Any, Any], tolerance: float) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=tolerance, atol=tolerance)


def assert_one_curve_on_every_layout(curves: dict[tuple[str, str], Curves], name: str, updates: int) -> None:
    whole, *divided = (curves["float64", layout][name] for layout in LAYOUTS["float64"])
    assert len(whole[0]) == updates
    for other in divided:
        assert_one_curve(whole, other, 1e-10)


@pytest.mark.parametrize("name", every_objective(1) | noisy_examples())
def test_any_layout_gives_one_curve_in_float64(curves: Any, name: str) -> None:
    """To 1e-10: losses, accuracies, gradient norms, weights and running statistics."""
    updates = UPDATES if name in LONG else BRIEF if name in noisy_examples() else SHORT
    assert_one_curve_on_every_layout(curves, name, updates)


@HOUR
@pytest.mark.long
@pytest.mark.parametrize("name", every_objective(1) | noisy_examples())
def test_any_layout_gives_one_curve_over_200_updates(curves_at_full_length: Any, name: str) -> None:
    assert_one_curve_on_every_layout(curves_at_full_length, name, UPDATES)


def test_training_gets_somewhere_on_the_way(curves: Any) -> None:
    """So that equal curves are curves."""
    lines, _ = curves["float64", "1 rank x 16"]["madry"]
    assert lines[-1]["loss/robust"] < 0.5 * lines[0]["loss/robust"]


def assert_deepspeed_follows(curves: dict[tuple[str, str], Curves], name: str, stage: int, full: bool) -> None:
    engine = PlainEngine(float32_run(name, in_float32_too()[name], Execution(), full))
    expected = trained(engine), weights(engine)
    for layout in LAYOUTS["float32"]:
        assert_one_curve(expected, curves["float32", layout][name, stage], 1e-5)


@pytest.mark.parametrize(("name", "stage"), followed(full=False))
def test_deepspeed_gives_the_same_curve(curves: Any, name: str, stage: int) -> None:
    """To 1e-5 in float32, on every layout, against plain PyTorch on one rank."""
    assert_deepspeed_follows(curves, name, stage, full=False)


@HOUR
@pytest.mark.long
@pytest.mark.parametrize(("name", "stage"), followed(full=True))
def test_deepspeed_gives_the_same_curve_over_20_updates(curves_at_full_length: Any, name: str, stage: int) -> None:
    assert_deepspeed_follows(curves_at_full_length, name, stage, full=True)
