"""A loss that is not finite, or explodes: named at once, and nothing is changed by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from robust_train import job
from robust_train.engines.engine import Engine, RollBack
from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge
from robust_train.nouns import Place
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError, NumericsError
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution, Guard
from robust_train.settings.keep import Keep
from robust_train.train import train
from tests.engines.faulty import Faulty
from tests.ranks import on_ranks
from tests.toys import Kept, gone_back, toy_run, trained, weights

AT, UPDATES = 2, 5


def faulty_run(folder: Path | str, policy: str, objective: Any = None, **changes: Any):
    guard = Guard(policy, most=changes.pop("most", 10))  # type: ignore[arg-type]
    settings = {"updates": UPDATES, "on_nonfinite": guard, "average": Average(0.9), **changes}
    return toy_run(objective or Faulty(Plain(), AT), folder, **settings)


def everything(engine: Engine) -> dict[str, torch.Tensor]:
    """All that an update changes."""
    moments = {
        f"{name}/{key}": value.clone()
        for name in engine.parameters
        for key, value in engine.optimiser_state(name).items()
    }
    shares = engine.holding.shares(engine.averaged)  # as saved: what fills up pieces under ZeRO 3 is nothing
    return weights(engine) | moments | {f"average/{name}": value.clone() for name, value in shares.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def until(engine: Engine, update: int) -> Kept:
    """Train up to an update and no further; what was recorded."""
    records = Kept()
    plain = engine.run.batches
    object.__setattr__(engine.run, "batches", lambda place, start: _first(plain(place, start), update - start))
    train(engine.run, engine, Judge(engine.run, engine), records)  # type: ignore[arg-type]
    object.__delattr__(engine.run, "batches")
    return records


def _first(batches: Any, count: int) -> Any:
    return (batch for _, batch in zip(range(count), batches, strict=False))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Faulty(Plain(), AT), "update 2: the loss is not finite, or above on_nonfinite.limit=10000, on rank 0"),
        (Faulty(Plain(), AT, times=math.inf), "update 2: the loss is not finite.* on rank 0"),
        (Faulty(Plain(), AT, times=1e5), "update 2: the loss is not finite, or above.* on rank 0"),
        (Faulty(Plain(), AT, times=math.inf, gradient=True), r"update 2: the (gradient|loss) is not finite"),
    ],
)
def test_a_bad_update_stops_the_run_and_changes_nothing(tmp_path: Path, objective: Any, message: str) -> None:
    """NaN, infinity and an exploding loss, in one part of four."""
    engine = PlainEngine(faulty_run(tmp_path, "stop", objective, engine=Execution(micro_batch=4)))
    until(engine, AT)
    before, recorded = everything(engine), engine.module.recorded()
    with pytest.raises(NumericsError, match=f"{message}.*Nothing was changed by it.*clip the gradient"):
        trained(engine)
    assert same(everything(engine), before)
    assert engine.updates == AT
    assert torch.equal(engine.module.recorded(), recorded)
    assert all(parameter.grad is None for parameter in engine.parameters.values())


def test_a_skipped_update_leaves_no_trace(tmp_path: Path) -> None:
    """The run ends as one that was told beforehand to leave that update out."""
    engine = PlainEngine(faulty_run(tmp_path, "skip"))
    lines = trained(engine)
    told = PlainEngine(faulty_run(tmp_path, "stop", Plain()))
    told.left_out = {AT}
    assert trained(told) == lines
    assert lines[AT] == {"update": AT, "left_out": 1.0}
    assert same(everything(engine), everything(told))


def test_going_back_ends_with_the_weights_of_a_run_that_leaves_the_update_out(tmp_path: Path) -> None:
    engine = PlainEngine(faulty_run(tmp_path, "rollback", checkpoint=Keep(1)))
    records, judge = Kept(), Judge(engine.run, engine)
    with pytest.raises(RollBack, match="update 2") as fault:
        train(engine.run, engine, judge, records)  # type: ignore[arg-type]
    job.roll_back(engine.run, engine, judge, records, fault.value)  # type: ignore[arg-type]
    assert (engine.updates, engine.left_out) == (AT, {AT})
    assert "Gone back to update 2; update 2 is left out" in records.said[0]
    train(engine.run, engine, judge, records)  # type: ignore[arg-type]

    skipping = PlainEngine(faulty_run(tmp_path / "skipping", "skip"))
    assert trained(skipping) == records.lines
    assert same(everything(engine), everything(skipping))


def test_what_was_left_out_is_left_out_after_a_restart(tmp_path: Path) -> None:
    engine = PlainEngine(faulty_run(tmp_path, "skip", checkpoint=Keep(3)))
    trained(engine)
    fresh = PlainEngine(faulty_run(tmp_path, "skip"))
    gone_back(fresh, tmp_path / "checkpoints" / "00000003")
    assert fresh.left_out == {AT}


def test_going_back_without_a_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    engine = PlainEngine(faulty_run(tmp_path, "rollback"))
    with pytest.raises(RollBack) as fault:
        trained(engine)
    with pytest.raises(ConfigError, match=r"no checkpoint to go back to: set checkpoint\.every"):
        job.roll_back(engine.run, engine, Judge(engine.run, engine), Kept(), fault.value)  # type: ignore[arg-type]


def test_too_many_bad_updates_stop_the_run_all_the_same(tmp_path: Path) -> None:
    engine = PlainEngine(faulty_run(tmp_path, "skip", most=0))
    with pytest.raises(NumericsError, match="update 2"):
        trained(engine)


def on_two_ranks(place: Place, folder: Path) -> dict[str, Any]:
    """{engine: (message of a stop, whether nothing changed, whether skipping leaves no trace)}."""
    from robust_train.engines.deepspeed import DeepSpeedEngine

    found = {}
    stages = ("0", 0, None), ("1", 1, 4), ("2", 2, None), ("2 in parts", 2, 4), ("3", 3, None), ("3 in parts", 3, 4)
    for name, stage, part in (("plain", 0, None), *stages):
        make = PlainEngine if name == "plain" else DeepSpeedEngine
        changes = {"engine": Execution(zero=stage, micro_batch=part, persist=0)}
        with make(faulty_run(folder, "stop", **changes), place) as engine:
            until(engine, AT)
            before, message = everything(engine), ""
            try:
                trained(engine)
            except NumericsError as error:
                message = str(error)
            unchanged = same(everything(engine), before) and engine.updates == AT
        with make(faulty_run(folder, "skip", **changes), place) as engine:
            lines, last = trained(engine), everything(engine)
        with make(faulty_run(folder, "stop", Plain(), **changes), place) as engine:
            engine.left_out = {AT}
            found[name] = message, unchanged, lines == trained(engine) and same(last, everything(engine))
    return found


@pytest.mark.slow
@pytest.mark.cluster
def test_every_engine_names_the_rank_and_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """NaN on the second of two ranks; plain PyTorch and every ZeRO stage, accumulated or not."""
    for rank, found in enumerate(on_ranks(2, on_two_ranks, tmp_path)):
        for name, (message, unchanged, no_trace) in found.items():
            assert "update 2" in message, (rank, name)
            assert "on rank 1 (" in message, (rank, name)
            assert unchanged, (rank, name)
            assert no_trace, (rank, name)
