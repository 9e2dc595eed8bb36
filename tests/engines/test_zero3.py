"""ZeRO 3: weights in pieces on the ranks, and every training objective on them as on whole ones.

Weights of all sizes are cut here (`persist=0`), so that each layer gathers; a network of 20,000 numbers would else be
whole on every rank. What every engine follows (parts, moves of their own) is in tests/engines/test_everywhere.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_train import job
from robust_train.attacks.apgd import APGD
from robust_train.attacks.pgd import PGD
from robust_train.check import check, check_room
from robust_train.engines.pieces import attacks_in
from robust_train.engines.plain import PlainEngine
from robust_train.forecast import forecast
from robust_train.judging import Judge
from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Attack, Objective, Place, within
from robust_train.objectives.madry import Madry
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.validate import Probe, Validate
from robust_train.threats.linf import Linf
from robust_train.threats.weights import Weights
from tests.engines.players import Penalised
from tests.laws.counted import counting
from tests.laws.test_law1_cost import LAYER
from tests.laws.test_law2_layout import in_float32_too
from tests.ranks import on_ranks
from tests.registered import every_objective
from tests.toys import Kept, ToyNetwork, toy_run, trained, weights

CUT = Execution(zero=3, persist=0)
WAYS = {  # how weights in pieces are attacked, accumulated, kept
    "in pieces": CUT,
    "a copy attacked, in parts of 4": replace(CUT, copy=True, micro_batch=4),
}
OFFLOADS = {
    "zero 1, optimiser": Execution(zero=1, offload=("optimiser",)),
    "zero 2, optimiser, in parts of 4": Execution(zero=2, offload=("optimiser",), micro_batch=4),
    "zero 3, both, in parts of 4": replace(CUT, offload=("optimiser", "weights"), micro_batch=4),
    "zero 3, small ones whole": Execution(zero=3, persist=60),
}
LINF = PGD(Linf(0.1), 2, 0.05)


def refused(objective: Objective) -> str:
    """Why ZeRO 3 refuses an objective; "" where it does not."""
    if objective.use in ("awp", "weight-adversary") or any(True for _ in within(objective, Weights)):
        return "needs whole tensors"
    return "differentiates a gradient by its input again" if objective.use == "grad-align" else ""


def aside(objective: Objective) -> bool:
    """Whether an attack of it sets images aside: then a copy is attacked."""
    return any(attack.sets_aside for attack in attacks_in(objective))


def objectives() -> dict[str, Objective]:
    """The examples that ZeRO 3 takes; madry with the attack that its other ways are followed with."""
    return {name: one for name, one in in_float32_too().items() if not refused(one)} | {"madry": Madry(LINF)}


def run_of(objective: Objective, engine: Execution = Execution(), **changes: Any) -> Run:
    """Smooth, so that rounding decides no slope; blocks are recomputed."""
    network = Blueprint(ToyNetwork(smooth=True), group=4, checkpointing=True)
    settings: dict[str, Any] = {"network": network, "updates": 2, "average": Average(0.9), "engine": engine}
    return toy_run(objective, **{**settings, **changes})


def perturbations(engine: Any) -> dict[str, Tensor]:
    """{attack: what it finds} of the objective's attacks, at this rank's share of the first batch."""
    run, found = engine.run, {}
    batch = next(run.batches(engine.place, 0)).to(engine.device, engine.dtype)
    engine.holding.refresh()
    key = Key(7).rows(batch.position)
    for place, attack in within(run.objective, Attack):
        found[place] = attack(engine.network, batch.images, batch.targets, key) - batch.images
    return found


def followed(place: Place) -> dict[Any, Any]:
    """{(objective, way): (perturbations, metrics, weights, average, whether an attack left gradients)}."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    pieces, copied = WAYS
    cases = {(name, copied if aside(one) else pieces): one for name, one in objectives().items()}
    cases |= {(name, copied): objectives()[name] for name in ("madry", "trades")}
    cases = {case: run_of(one, WAYS[case[1]]) for case, one in cases.items()}
    cases |= {("madry", way): run_of(Madry(LINF), engine) for way, engine in OFFLOADS.items()}
    found = {}
    for case, run in cases.items():
        with DeepSpeedEngine(run, place) as engine:
            lines = trained(engine)
            before = gradients(engine)
            moved = perturbations(engine)
            touched = before != gradients(engine)
            with engine.whole() as network:
                average = {n: v.detach().clone() for n, v in network.model.state_dict().items()}
            found[case] = moved, lines, weights(engine), average, touched
    return found


def gradients(engine: Any) -> tuple[Any, ...]:
    """What an attack must leave: gradients, the place in an accumulation, hooks of weights, what is frozen."""
    zero, own = engine._zero, list(engine.module.parameters())
    buffer = getattr(zero, "grad_partitions_flat_buffer", None)
    place = engine._deepspeed.micro_steps, getattr(zero, "micro_step_id", None)
    hooks = [len(parameter._backward_hooks or ()) for parameter in own]
    total = None if buffer is None else float(buffer.abs().sum())
    return place, total, hooks, [parameter.requires_grad for parameter in own], [p.grad is None for p in own]


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[Any, Any]]]:
    return {world: on_ranks(world, followed) for world in (1, 2)}


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The same by plain PyTorch on one rank."""
    known = {}
    for name, one in objectives().items():
        engine = PlainEngine(run_of(one))
        lines = trained(engine)
        moved = perturbations(engine)
        with engine.whole() as network:
            average = {n: v.detach().clone() for n, v in network.model.state_dict().items()}
        known[name] = moved, lines, weights(engine), average
    return known


def close(mine: Any, theirs: Any, what: Any) -> None:
    assert mine.keys() == theirs.keys(), what
    for n, value in mine.items():
        torch.testing.assert_close(theirs[n], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=n: f"{what} {n}: {text}")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("world", [1, 2])
def test_every_objective_trains_in_pieces_as_on_whole_weights(found: Any, plain: Any, world: int) -> None:
    """To 1e-5: metrics, next weights, average, and perturbations of every attack at the weights so trained."""
    ranks = found[world]
    assert {name for name, _ in ranks[0]} == set(objectives())
    for case, (_, lines, held, average, _) in ranks[0].items():
        mine = plain[case[0]]
        for line, other in zip(mine[1], lines, strict=True):
            assert line == pytest.approx(other, rel=1e-5, abs=1e-5), case
        close(mine[2], held, case)
        close(mine[3], average, case)
        parts = [rank[case][0] for rank in ranks]
        close(mine[0], {n: torch.cat([part[n] for part in parts]) for n in parts[0]}, case)
        assert all(rank[case][1] == lines for rank in ranks), case


@pytest.mark.slow
@pytest.mark.cluster
def test_an_attack_leaves_gradients_hooks_and_accumulation_alone(found: Any) -> None:
    cases = [(world, case, lines[4]) for world in (1, 2) for rank in found[world] for case, lines in rank.items()]
    assert len(cases) == 3 * len(found[1][0])
    assert not [case for case in cases if case[2]]


def on_four(place: Place) -> dict[Any, Any]:
    """{layout: metrics of six updates}: plain PyTorch and every stage; and bf16 by the last, beside plain PyTorch's."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    found: dict[Any, Any] = {}
    for stage in (None, 0, 1, 2, 3):
        run = run_of(Madry(LINF), Execution(zero=stage or 0, persist=0), updates=6)
        with PlainEngine(run, place) if stage is None else DeepSpeedEngine(run, place) as engine:
            found[stage] = trained(engine)
    run = run_of(Madry(LINF), CUT, precision="bf16")
    for make in (PlainEngine, DeepSpeedEngine):
        with make(run, place) as engine:
            found[make.__name__] = trained(engine), weights(engine)
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_one_two_and_four_ranks_give_one_curve_at_every_stage_and_bf16_is_plain_pytorchs() -> None:
    """Law 2 across ranks and stages, to 1e-5; in bf16 beside plain PyTorch on as many ranks."""
    alone = on_ranks(1, on_four)[0]
    for world in (2, 4):
        for rank in on_ranks(world, on_four):
            for stage in (None, 0, 1, 2, 3):
                for line, other in zip(alone[None], rank[stage], strict=True):
                    assert line == pytest.approx(other, rel=1e-5, abs=1e-5), (world, stage)
            close(rank["PlainEngine"][1], rank["DeepSpeedEngine"][1], f"bf16 on {world} ranks")


def counted(place: Place) -> dict[tuple[int, bool], Counter[str]]:
    """{(steps, copy): collectives of the third update}: the first ones record what DeepSpeed looks ahead by."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    counts = {}
    for steps in (0, 1, 3):
        for copy in (False, True):
            run = toy_run(Madry(replace(LINF, steps=steps)), updates=9, engine=replace(CUT, copy=copy))
            with DeepSpeedEngine(run, place) as engine:
                for update, batch in zip(range(4), run.batches(place, 0), strict=False):
                    held = [batch.images.float(), *engine.module.buffers()]
                    with counting(LAYER, held) as seen:
                        key = Key(run.seed).at(update)
                        for part in engine.micro_batches(batch):
                            rows = key.rows(part.position)
                            engine.backward(run.objective(engine.network, part, rows, engine.state))
                        engine.step()
            counts[steps, copy] = Counter({n.removeprefix("collective "): c for n, c in seen.items() if "coll" in n})
    return counts


@pytest.mark.slow
@pytest.mark.cluster
def test_an_update_has_the_collectives_of_a_plain_one_and_its_gathers() -> None:
    """The reduction and the flat all-reduce, whatever K is; each attack step gathers what a plain update does, again.

    A copy is gathered in one all-gather, and attacked without any.
    """
    first, second = on_ranks(2, counted)
    assert first == second
    gathers = {key: sum(n for name, n in seen.items() if "gather" in name) for key, seen in first.items()}
    others = {key: sum(seen.values()) - gathers[key] for key, seen in first.items()}
    assert set(others.values()) == {2}
    plain = gathers[0, False]
    for steps in (0, 1, 3):
        assert gathers[steps, False] == (steps + 1) * plain
        assert gathers[steps, True] == plain + 1


def judged(place: Place, folder: Path) -> dict[str, Any]:
    """Validation, a probe, a picture and a forecast, with 5 images on the ranks: one has a chunk of them, or none."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    linf = PGD(Linf(0.1), 2, 0.05)
    validate = Validate(every=1, attack=linf, images=5, chunk=5, probe=Probe(every=1, attack=linf, images=5))
    run = run_of(Madry(linf), CUT, validate=validate, folder=str(folder))
    make = DeepSpeedEngine if place.world > 1 else PlainEngine
    with make(run, place) as engine:
        judge, records = Judge(run, engine), Kept()
        found = {"before": judge.validate()}
        trained(engine)
        found["after"] = judge.validate()
        strongest = APGD(Linf(0.1), steps=5)  # sets images aside: ranks do unlike numbers of forwards
        found["strong"] = judge.evaluate(strongest, 5)
        batch = next(run.batches(place, 0))
        judge.probe(batch, records)  # type: ignore[arg-type]
        found["probe"] = records.lines[0]
        found["picture"] = len(job.picture(run, engine, linf))
        found["pace"] = forecast(run, engine).images_per_second > 0
        found["weights"] = weights(engine)
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_five_images_on_two_ranks_are_judged_as_on_one(tmp_path: Path) -> None:
    """Unequal numbers of forwards would wait for ever in a gather; the weights are as if nothing had been judged."""
    alone = on_ranks(1, judged, tmp_path / "1")[0]
    for rank in on_ranks(2, judged, tmp_path / "2"):
        assert rank["pace"]
        for name in ("before", "after", "strong", "probe"):
            assert rank[name] == pytest.approx(alone[name]), name
        close(alone["weights"], rank["weights"], "weights")
        assert rank["picture"] == pytest.approx(alone["picture"], rel=0.05)


def looked_at(run: Run) -> None:
    """What `--check` looks at, by plain PyTorch in this process."""
    check(run, 2)
    check_room(run, PlainEngine(run))


def refused_by(run: Run) -> str:
    with pytest.raises(ConfigError) as error:
        looked_at(run)
    return str(error.value)


@pytest.mark.parametrize("name", [name for name, one in every_objective(1).items() if refused(one)])
def test_a_check_refuses_what_weights_in_pieces_cannot_do(name: str) -> None:
    """Found in a rehearsal on whole weights, so that a check in one process sees it; ZeRO 2 takes them all."""
    said = refused_by(run_of(every_objective(1)[name], CUT))
    assert refused(every_objective(1)[name]) in said
    assert "engine.zero=2 or below" in said
    looked_at(run_of(every_objective(1)[name], Execution(zero=2)))


def test_a_check_refuses_a_penalty_of_the_users_own_and_an_attack_that_sets_images_aside() -> None:
    assert "objective penalised differentiates a gradient" in refused_by(run_of(Penalised(), CUT))
    fallen = Madry(APGD(Linf(0.1), steps=2))
    assert "apgd sets images aside" in refused_by(run_of(fallen, CUT))
    looked_at(run_of(fallen, replace(CUT, copy=True)))
    assert "compile=true under engine.zero=3" in refused_by(run_of(Madry(LINF), CUT, compile=True))


def test_a_first_gradient_of_other_weights_may_be_differentiated_again() -> None:
    """The graph decides: only one that runs through the network is refused."""
    from robust_train.engines.pieces import in_pieces

    run = run_of(Madry(LINF), CUT)
    network = run.build(torch.device("cpu"))
    x = torch.ones(1, requires_grad=True)
    with in_pieces(run, network):
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x)
    assert float(curve) == 6
    assert torch.autograd.grad.__module__ == "torch.autograd"
    assert not network.cut


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"copy": True}, "weights are whole there"),
        ({"zero": 2, "offload": ("weights",)}, "say zero=3"),
        ({"offload": ("optimiser",)}, "say zero=1 or more"),
        ({"zero": 3, "persist": -1}, "must not be negative"),
    ],
)
def test_fields_that_only_some_stages_have_are_refused_elsewhere(fields: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Execution(**fields)
