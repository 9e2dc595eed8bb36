"""What every engine does around an update: cutting, clipping, averaging, judging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_train.attacks.pgd import PGD
from robust_train.checkpoint import best
from robust_train.engines.average import shares
from robust_train.engines.deepspeed import DeepSpeedEngine
from robust_train.engines.division import micro_batch_size
from robust_train.engines.place import place_of_environment
from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge, Judged
from robust_train.nouns import Place, State
from robust_train.objectives.interpolated import Interpolated
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.validate import Probe, Validate
from robust_train.threats.linf import Linf
from robust_train.train import train
from tests.toys import Kept, gone_back, saved, toy_run, trained, weights

PGD1 = PGD(Linf(0.1), 1, 0.1)


def test_parts_are_whole_groups_of_a_ranks_share() -> None:
    sizes = {
        size: micro_batch_size(toy_run(Plain(), engine=Execution(micro_batch=size)), 1)
        for size in (None, 16, 15, 8, 7, 4)
    }
    assert sizes == {None: 16, 16: 16, 15: 8, 8: 8, 7: 4, 4: 4}
    mixed = toy_run(Interpolated(PGD1, group=8), engine=Execution(micro_batch=4))
    with pytest.raises(
        ConfigError, match=r"engine\.micro_batch=4 is below one group of 8 images.*engine\.micro_batch=8 or more"
    ):
        micro_batch_size(mixed, 1)


def test_a_batch_that_does_not_divide_is_told_the_world_sizes_that_do() -> None:
    with pytest.raises(ConfigError, match=r"batch=16 does not divide over 3 ranks\. Use 1, 2, 4, 8, 16 ranks"):
        micro_batch_size(toy_run(Plain()), 3)
    with pytest.raises(ConfigError, match=r"2 images a rank, which is not whole groups of 4.*Use 1, 2, 4 ranks"):
        micro_batch_size(toy_run(Plain()), 8)


def test_the_gradient_is_clipped_to_its_norm_over_all_weights(tmp_path: Path) -> None:
    """After one step of plain SGD from w: ||w' - w|| = lr min(norm, clip)."""
    for clip in (0.0, 0.5, 100.0):
        optimiser = Optimiser(name="momentum", momentum=0.0, lr=1e-3, clip=clip)
        engine = PlainEngine(toy_run(Plain(), tmp_path, optimiser=optimiser, updates=1), dtype=torch.float64)
        before = {name: parameter.detach().clone() for name, parameter in engine.parameters.items()}
        (line,) = trained(engine)
        moved = sum((p.detach() - before[name]).square().sum() for name, p in engine.parameters.items()) ** 0.5
        assert line["gradient/norm"] > 0.6
        expected = min(line["gradient/norm"], clip or float("inf"))
        assert float(moved) == pytest.approx(1e-3 * expected, rel=1e-9)


def test_the_gradients_norm_is_that_of_autograd(tmp_path: Path) -> None:
    run = toy_run(Plain(), tmp_path, updates=1, optimiser=Optimiser(lr=0.0))
    engine = PlainEngine(run, dtype=torch.float64)
    batch = next(run.batches(Place(), 0)).to("cpu", torch.float64)
    from robust_train.keyed import Key

    loss = run.objective(engine.module, batch, Key(0).at(0).rows(batch.position), State()).total
    gradients = torch.autograd.grad(loss, list(engine.parameters.values()))
    (line,) = trained(engine)
    assert line["gradient/norm"] == pytest.approx(float(sum(g.square().sum() for g in gradients) ** 0.5), rel=1e-12)


def test_micro_batches_are_averaged_whatever_their_number() -> None:
    """The step of plain descent, which nothing clips, is that of the whole batch."""
    found = []
    for part in (None, 4):
        run = toy_run(Plain(), updates=2, optimiser=Optimiser("sgd", lr=0.1), engine=Execution(micro_batch=part))
        engine = PlainEngine(run, dtype=torch.float64)
        trained(engine)
        found.append(weights(engine))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-12, msg=name)


def test_the_rate_of_each_update_is_recorded_and_used(tmp_path: Path) -> None:
    from robust_train.engines.schedule import Ramp

    run = toy_run(Plain(), tmp_path, updates=4, optimiser=Optimiser(lr=Ramp(to=0.4, updates=4)))
    lines = trained(PlainEngine(run))
    assert [line["lr"] for line in lines] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    still = PlainEngine(toy_run(Plain(), tmp_path, updates=1, optimiser=Optimiser(lr=Ramp(to=0.4, updates=4))))
    before = {name: parameter.detach().clone() for name, parameter in still.parameters.items()}
    trained(still)
    assert all(torch.equal(parameter, before[name]) for name, parameter in still.parameters.items())


def test_the_average_is_the_weighted_sum_of_all_weights(tmp_path: Path) -> None:
    """a_n = d^n w_0 + (1 - d) sum_k d^(n - k) w_k."""
    d, updates = 0.6, 4
    seen: list[dict[str, Tensor]] = []

    class Watched(PlainEngine):
        def step(self) -> dict[str, float]:
            metrics = super().step()
            seen.append(weights(self))
            return metrics

    engine = Watched(toy_run(Plain(), tmp_path, updates=updates, average=Average(d, warmup=False)))
    seen.append(weights(engine))
    trained(engine)
    assert engine.averaged is not None
    assert "layers.0.norm.running_mean" in engine.averaged.kept  # running statistics are averaged too
    for name, value in engine.averaged.kept.items():
        expected = d**updates * seen[0][name]
        expected = expected + sum((1 - d) * d ** (updates - k) * seen[k][name] for k in range(1, updates + 1))
        torch.testing.assert_close(value, expected)


def test_a_young_average_forgets_its_start(tmp_path: Path) -> None:
    """With warm-up the first decay is 1 / 10: nine tenths of the first weights are those after one update."""
    engine = PlainEngine(toy_run(Plain(), tmp_path, updates=1, average=Average(0.999)))
    before = weights(engine)
    trained(engine)
    for name, value in engine.averaged.kept.items():  # type: ignore[union-attr]
        torch.testing.assert_close(value, 0.1 * before[name] + 0.9 * weights(engine)[name])


def test_the_average_is_judged_and_the_weights_come_back(tmp_path: Path) -> None:
    engine = PlainEngine(toy_run(Plain(), tmp_path, average=Average(0.9)))
    trained(engine)
    before, average = weights(engine), dict(engine.averaged.kept)  # type: ignore[union-attr]
    with engine.whole():
        assert all(torch.equal(weights(engine)[name], value) for name, value in average.items())
    assert all(torch.equal(weights(engine)[name], value) for name, value in before.items())


def test_weights_from_elsewhere_begin_the_average_too(tmp_path: Path) -> None:
    """The average of a run that starts from a checkpoint does not remember the seed's weights."""
    donor = PlainEngine(toy_run(Plain(), tmp_path, seed=1))
    engine = PlainEngine(toy_run(Plain(), tmp_path, average=Average(0.999, warmup=False)))
    engine.begin_with(weights(donor), "donor")
    assert all(torch.equal(weights(donor)[name], value) for name, value in engine.averaged.kept.items())  # type: ignore[union-attr]


def test_ranks_share_the_average_evenly() -> None:
    named = {str(size): torch.zeros(size) for size in (100, 60, 50, 30, 20)}
    owner = shares(named, 2)
    loads = [sum(int(name) for name, rank in owner.items() if rank == r) for r in (0, 1)]
    assert loads == [130, 130]


def validated(folder: Path, scores: list[float], monkeypatch: pytest.MonkeyPatch) -> PlainEngine:
    """A run whose validation accuracies are those given."""
    run = toy_run(Plain(), folder, updates=len(scores), validate=Validate(every=1, attack=PGD1), checkpoint=Keep(0, 1))
    engine, left = PlainEngine(run), iter(scores)
    monkeypatch.setattr(
        Judge, "evaluate", lambda judge, attack, images: {"accuracy/pgd1": next(left), "accuracy/clean": 1.0}
    )
    trained(engine)
    return engine


def test_the_best_by_robust_accuracy_is_kept_and_the_run_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """Early stopping as Rice et al. 2020 mean it: robust overfitting after update 2 costs the best nothing."""
    engine = validated(tmp_path, [0.1, 0.4, 0.3, 0.2], monkeypatch)
    assert engine.updates == 4
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("0*"))
    assert kept == ["00000002", "00000004"]
    assert best(tmp_path) == tmp_path / "checkpoints" / "00000002"


def test_the_last_update_may_be_the_best(tmp_path: Path, monkeypatch: Any) -> None:
    validated(tmp_path, [0.1, 0.2, 0.15, 0.3], monkeypatch)
    assert best(tmp_path) == tmp_path / "checkpoints" / "00000004"


def test_validation_changes_nothing(tmp_path: Path) -> None:
    """A run that validates and probes after every update has the losses of one that never does."""
    attack = PGD(Linf(0.1), 2, 0.05)
    watched = Validate(every=1, attack=attack, probe=Probe(every=1, attack=attack, images=8))
    lines = trained(PlainEngine(toy_run(Plain(), tmp_path, updates=4, validate=watched)))
    plain = trained(PlainEngine(toy_run(Plain(), tmp_path / "plain", updates=4)))
    assert [line for line in lines if "gradient/norm" in line] == plain
    assert [set(line) for line in lines[:3]] == [
        set(plain[0]),
        {"update", "accuracy/clean", "accuracy/pgd2", "validation/images"},
        {"update", "probe/pgd2", "probe/collapsed"},
    ]


def test_validation_accuracy_is_that_of_all_images(tmp_path: Path) -> None:
    engine = PlainEngine(toy_run(Plain(), tmp_path, updates=30, validate=Validate(attack=PGD1, chunk=5)))
    trained(engine)
    found = Judge(engine.run, engine).evaluate(PGD1, None)
    (batch,) = engine.run.data.validation_batches(Place(), 32)
    batch = batch.to("cpu")
    engine.module.eval()
    with torch.no_grad():
        right = (engine.module(batch.images).argmax(1) == batch.targets).float().mean()
    engine.module.train()
    assert found["validation/images"] == 32
    assert found["accuracy/clean"] == pytest.approx(float(right))
    assert found["accuracy/pgd1"] <= found["accuracy/clean"]


def probed(folder: Path, accuracies: list[float], monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Probes with those accuracies, one an update."""
    probe = Probe(every=1, attack=PGD1)
    run = toy_run(Plain(), folder, updates=len(accuracies), validate=Validate(probe=probe))
    engine, records, left = PlainEngine(run), Kept(), iter(accuracies)
    monkeypatch.setattr(Judge, "accuracies", lambda *_: {"accuracy/pgd1": next(left)})
    train(run, engine, Judge(run, engine), records)  # type: ignore[arg-type]
    return records


def test_a_probe_notices_a_collapse_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    """Wong et al. 2020: a fall of more than 0.2 since the last probe."""
    records = probed(tmp_path, [0.2, 0.4, 0.25, 0.01, 0.02], monkeypatch)
    lines = [line for line in records.lines if "probe/collapsed" in line]
    assert [line["probe/pgd1"] for line in lines] == [0.2, 0.4, 0.25, 0.01, 0.02]
    assert [line["probe/collapsed"] for line in lines] == [0, 0, 0, 1, 0]
    (said,) = records.said
    assert "update 3" in said
    assert "fell from 0.25 to 0.01" in said


def test_a_probe_is_remembered_over_a_restart(tmp_path: Path) -> None:
    engine = PlainEngine(toy_run(Plain(), tmp_path))
    judge = Judge(engine.run, engine)
    judge.judged = Judged(probed=0.4, collapses=2)
    saved(engine, judge)
    fresh = PlainEngine(toy_run(Plain(), tmp_path))
    assert gone_back(fresh, tmp_path / "checkpoints" / "00000000").judged == judge.judged


def test_a_probe_without_an_attack_is_refused() -> None:
    with pytest.raises(ValueError, match="attack is missing"):
        Probe(every=10)


def test_zero_refuses_optimisers_that_look_at_whole_tensors(tmp_path: Path) -> None:
    """Before DeepSpeed is so much as imported."""
    for optimiser in (Optimiser(name="lamb"), Optimiser(name="adamw", options={"caution": True})):
        run = toy_run(Plain(), tmp_path, optimiser=optimiser, engine=Execution(zero=1))
        with pytest.raises(ConfigError, match=r"engine\.zero=1 cuts them.*Use engine\.zero=0, or one of sgd"):
            DeepSpeedEngine(run, Place())


def test_a_place_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert place_of_environment() == Place(0, 1, "cpu")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert place_of_environment() == Place(3, 4, "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert place_of_environment(gpu=True) == Place(3, 4, "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="rank 3 is process 1 of its machine and wants GPU 1, and PyTorch finds 1"):
        place_of_environment(gpu=True)
