"""Law 1: an adversarial update costs its arithmetic.

K steps cost 2K forward passes and the update 3 more; no weight gradients, collectives or reads of the device in an
attack. Two ranks of 8 images, every objective, plain PyTorch at each K and DeepSpeed at one, Madry's at all of them.
Momentum SGD: Adam's counters live on the host, and are read there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from robust_train.engines.engine import Engine
from robust_train.engines.plain import PlainEngine
from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Place, at
from robust_train.objectives.generalized import Generalized
from robust_train.settings.execution import Execution
from tests.laws.counted import counting
from tests.ranks import on_ranks
from tests.registered import every_objective
from tests.toys import ToyNetwork, toy_run

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

STEPS = (0, 1, 3)
STAGES = (0, 1, 2)  # of ZeRO
IMAGES = 8  # a rank
LAYER = torch.Size([6, 6, 3, 3])  # the second block's convolution


def of_an_update(engine: Engine, number: int = 1) -> Counter[str]:
    """Counts of update `number`, the loop's own lines; the first ones fill the optimiser's state, uncounted."""
    run = engine.run
    for update, batch in zip(range(number + 1), run.batches(engine.place, 0), strict=False):
        batch = batch.to(engine.device, engine.dtype)
        held = [batch.images, batch.targets, batch.position, *engine.module.parameters(), *engine.module.buffers()]
        with counting(LAYER, held) as counts:
            key, objective = Key(run.seed).at(update), at(run.objective, update, run.updates)
            for part in engine.micro_batches(batch):
                loss = objective(engine.network, part, key.rows(part.position), engine.state)
                engine.backward(loss)
            engine.step()
    return counts


def measured(place: Place) -> dict[tuple[str, str, int], Counter[str]]:
    """{(engine, example, steps): counts of an update} on this rank."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    network = Blueprint(ToyNetwork(), group=4)
    found = {}
    for steps in STEPS:
        for number, (name, objective) in enumerate(every_objective(steps).items()):
            run = toy_run(objective, network=network)
            found["plain", name, steps] = of_an_update(PlainEngine(run, place))
            own = STAGES[number % 3 :: 3] if steps == STEPS[number // 3 % 3] else ()  # each stage meets each K
            for stage in STAGES if name == "madry" else own:
                for part in (None, 4) if name == "madry" else (None,):
                    run = toy_run(objective, network=network, engine=Execution(zero=stage, micro_batch=part))
                    with DeepSpeedEngine(run, place) as engine:
                        found[f"ZeRO {stage}" + (" in 2 parts" if part else ""), name, steps] = of_an_update(engine)
    return found


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str, int], Counter[str]]:
    first, second = on_ranks(2, measured)
    assert first == second
    return first


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", every_objective(1))
def test_an_update_costs_what_its_objective_says(counts: Any, name: str, steps: int) -> None:
    """Forwards, input-backwards and weight-backwards, in forward passes of the batch; on every engine alike."""
    objective = every_objective(steps)[name]
    costs = {objective.cost()}
    if isinstance(objective, Generalized) and objective.join == "sample":  # its cost is a mean over what is drawn
        members = [attack.cost() for attack in objective.attacks] + [3.0] * (objective.weights is not None)
        costs = {member + 3 for member in members}
    for (engine, example, k), found in counts.items():
        if (example, k) == (name, steps):
            assert (found["forward"] + found["input"] + found["weight"]) / IMAGES in costs, engine


@pytest.mark.parametrize("steps", STEPS)
def test_madry_costs_two_forwards_a_step_and_three(counts: Any, steps: int) -> None:
    """2K + 3: K forwards and input-backwards in the attack, and one of each kind in the update."""
    for (engine, example, k), found in counts.items():
        if (example, k) == ("madry", steps):
            each = found["forward"] / IMAGES, found["input"] / IMAGES, found["weight"] / IMAGES
            assert each == (steps + 1, steps + 1, 1), engine


def test_an_update_has_one_host_read(counts: Any) -> None:
    assert {key: found["read"] for key, found in counts.items() if found["read"] != 1} == {}


def test_an_update_has_its_engines_collectives_and_one_flat_all_reduce(counts: Any) -> None:
    """None in the attack, whatever K is. Two groups of weights: those that decay and those that do not."""
    reduced = {"collective allreduce_": 2}
    gathered = {"collective _allgather_base_": 2}
    expected = {
        "plain": reduced,
        "ZeRO 0": reduced,
        "ZeRO 0 in 2 parts": reduced,
        "ZeRO 1": reduced | gathered,
        "ZeRO 1 in 2 parts": reduced | gathered,
        "ZeRO 2": reduced | gathered,
        "ZeRO 2 in 2 parts": {"collective allreduce_": 3} | gathered,
    }
    for (engine, example, steps), found in counts.items():
        collectives = {name: count for name, count in found.items() if name.startswith("collective")}
        assert collectives == expected[engine], (engine, example, steps)


def test_the_count_sees_a_weight_gradient_in_an_attack() -> None:
    """A check of the counting: `.backward()` in the attack, as many do, costs one forward more a step."""
    network = toy_run(every_objective(1)["madry"], network=Blueprint(ToyNetwork(), group=4)).build(torch.device("cpu"))
    images = torch.full((IMAGES, 1, 8, 8), 0.5, requires_grad=True)
    with counting(LAYER, [images]) as counts, network.drops(None):
        network(images).sum().backward()
        float(images.grad.sum())  # type: ignore[union-attr]
    assert counts == {"forward": IMAGES, "input": IMAGES, "weight": IMAGES, "read": 1}
