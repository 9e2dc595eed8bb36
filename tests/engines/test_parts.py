"""Modules that an objective owns, moves of its own, and updates without a loss of the network."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robust_train.check import check_room
from robust_train.data.mix import Mixup
from robust_train.engines.plain import PlainEngine
from robust_train.forecast import rehearse
from robust_train.keyed import Key
from robust_train.nouns import Loss, Objective, Part, Place
from robust_train.objectives.plain import Plain
from robust_train.read.errors import CheckpointError, ConfigError, NumericsError
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from tests.engines.players import HEAD, Hebb, Players, Scalar, Shift, Turns
from tests.engines.restated import restated, standing
from tests.toys import gone_back, toy_run, trained, weights

CLIPPED = Optimiser(name="momentum", lr=0.02, weight_decay=1e-3, clip=2.0)


def engine_of(objective: Objective, folder: Path, updates: int = 6, micro_batch: int | None = None, **changes: Any):
    changes = {"optimiser": CLIPPED, "engine": Execution(micro_batch=micro_batch), **changes}
    return PlainEngine(toy_run(objective, folder, updates=updates, **changes), dtype=torch.float64)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=tolerance, atol=tolerance, msg=lambda t, n=name: f"{n}: {t}"
        )


@pytest.mark.parametrize("objective", [Players(), Turns()], ids=lambda one: one.use)
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_two_players_follow_their_plain_restatement(tmp_path: Path, objective: Any, micro_batch: int | None) -> None:
    """Network, ascending generator and multiplier, head, teacher and memory: every weight, to 1e-10, over 6 updates."""
    engine = engine_of(objective, tmp_path, micro_batch=micro_batch)
    trained(engine)
    expected = restated(engine.run)
    assert_close(standing(engine), expected[-1])
    moved = {
        name.partition("/")[0] for name, value in expected[-1].items() if not torch.equal(value, expected[0][name])
    }
    assert moved >= {"network", "generator", "head", "teacher", "memory"}


def test_what_rests_is_left_as_it_is(tmp_path: Path) -> None:
    """Without a total neither decay nor momentum moves a weight; a part that `of` does not name stays too."""
    seen = []

    class Watched(PlainEngine):
        def step(self) -> dict[str, float]:
            metrics = super().step()
            seen.append((metrics, standing(self)))
            return metrics

    trained(Watched(toy_run(Turns(), tmp_path, updates=4)))
    (first, one), (second, two), (_, three), _ = seen
    assert {"lr", "gradient/norm"} <= set(first)
    assert not {"lr", "gradient/norm"} & set(second)
    assert {"gradient/norm/generator", "lr/generator", "loss/fooled"} <= set(second)
    learnt = {name for name in one if name.startswith("network/") and "running" not in name and "tracked" not in name}
    assert all(torch.equal(one[name], two[name]) for name in learnt | {"head/weight"})
    assert not any(torch.equal(two[name], three[name]) for name in learnt)
    assert torch.equal(two["generator/z"], three["generator/z"])
    assert not torch.equal(one["generator/z"], two["generator/z"])


@dataclass(frozen=True)
class Resting(Plain):
    """A plain loss whose forward is recorded, and no total: nothing descends it."""

    use = "resting"

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        return replace(super().__call__(network, batch, key, state), total=None)


@dataclass(frozen=True)
class Moved(Resting):
    """The same, with a move of its own."""

    use = "moved"

    def settle(self, network: Any, state: Any, sums: Any, update: int, updates: int) -> None:
        network.model.head.head.weight.add_(1.0)


def test_a_network_at_rest_keeps_its_statistics_and_its_average(tmp_path: Path) -> None:
    """Without a total no running statistic moves; the average follows only where the objective settles."""
    for objective in (Resting(), Moved()):
        engine = engine_of(objective, tmp_path / objective.use, updates=2, average=Average(0.5, warmup=False))
        assert engine.averaged is not None
        before = weights(engine)
        for value in engine.averaged.kept.values():
            value.zero_()
        trained(engine)
        moved = {name for name, value in weights(engine).items() if not torch.equal(value, before[name])}
        assert moved == ({"head.head.weight"} if isinstance(objective, Moved) else set())
        assert engine.module.recorded().abs().max() == 0
        assert bool(engine.averaged.kept["layers.0.norm.running_var"].any()) == isinstance(objective, Moved)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_local_rule_moves_weights_without_a_loss(tmp_path: Path, micro_batch: int | None) -> None:
    """Oja: w <- w + rate mean_b y (x - y w), and nothing else moves."""
    engine = engine_of(Hebb(), tmp_path, micro_batch=micro_batch)
    network, before = deepcopy(engine.module), weights(engine)
    with torch.no_grad():
        for _, batch in zip(range(6), engine.run.batches(Place(), 0), strict=False):
            batch = batch.to("cpu", torch.float64)
            with network.drops(None):
                y, seen = network(batch.images, taps=("layers",))
            x, w = seen["layers"].flatten(1), network.model.head.head.weight
            w += 0.02 * torch.stack([torch.outer(b, a - b @ w) for a, b in zip(x, y, strict=True)]).mean(0)
    lines = trained(engine)
    assert set(lines[0]) == {"update", "activity"}
    assert_close({"w": weights(engine)["head.head.weight"]}, {"w": network.model.head.head.weight.detach()})
    same = {name for name, value in weights(engine).items() if torch.equal(value, before[name])}
    assert same == set(before) - {"head.head.weight"}


def test_parts_are_made_by_the_runs_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, drawn = engine_of(Players(), tmp_path), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # making them moves nobody's generator
    torch.manual_seed(2)
    one, two = standing(first), standing(engine_of(Players(), tmp_path))
    other = standing(engine_of(Players(), tmp_path, seed=1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["generator/z"], other["generator/z"])
    assert weights(first).keys() == weights(engine_of(Plain(), tmp_path)).keys()
    assert all(torch.equal(v, weights(engine_of(Plain(), tmp_path))[n]) for n, v in weights(first).items())


def test_a_run_with_parts_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Players, their optimisers, averages and counts: 6 updates equal 3 and 3."""
    whole = engine_of(Turns(), tmp_path / "whole", checkpoint=Keep(3))
    lines = trained(whole)
    again = engine_of(Turns(), tmp_path / "again")
    gone_back(again, tmp_path / "whole" / "checkpoints" / "00000003")
    assert trained(again) == lines[3:]
    assert all(torch.equal(value, standing(whole)[name]) for name, value in standing(again).items())
    with pytest.raises(CheckpointError, match="holds other parts of the objective than the run's: generator/weights/z"):
        gone_back(engine_of(Plain(), tmp_path), tmp_path / "whole" / "checkpoints" / "00000003")


@dataclass(frozen=True)
class Tying(Plain):
    """A plain loss, and a part whose layers share one weight."""

    use = "tying"

    def parts(self, network: Any, data: Any) -> dict[str, Part]:
        tied = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        tied[1].weight = tied[0].weight
        return {"tied": Part(tied, HEAD)}

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        loss = super().__call__(network, batch, key, state)
        return replace(loss, of={"tied": state.parts["tied"](batch.images.flatten(1)[:, :5]).square().mean()})


def test_a_part_with_tied_weights_goes_on_to_the_bit(tmp_path: Path) -> None:
    whole = engine_of(Tying(), tmp_path / "whole", checkpoint=Keep(3))
    lines = trained(whole)
    again = engine_of(Tying(), tmp_path / "again", seed=0)
    gone_back(again, tmp_path / "whole" / "checkpoints" / "00000003")
    assert trained(again) == lines[3:]
    tied = again.parts.modules["tied"]
    assert tied[0].weight is tied[1].weight
    assert all(torch.equal(value, standing(whole)[name]) for name, value in standing(again).items())


@dataclass(frozen=True)
class Broken(Players):
    """Of one part the scalar is not finite, or only its gradient."""

    gradient: bool = False

    use = "broken"

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        loss = super().__call__(network, batch, key, state)
        wrong = loss.of["generator"] * float("inf")
        wrong = loss.of["generator"].detach() + (wrong - wrong.detach()).nan_to_num() if self.gradient else wrong
        if self.gradient:
            wrong = wrong + (state.parts["generator"].z * 0).abs().sqrt().sum()  # its slope at 0 is not finite
        return replace(loss, of={**loss.of, "generator": wrong})


@pytest.mark.parametrize("gradient", [False, True])
def test_a_part_whose_gradient_is_not_finite_changes_nothing(tmp_path: Path, gradient: bool) -> None:
    engine = engine_of(Broken(gradient), tmp_path)
    before = standing(engine)
    with pytest.raises(
        NumericsError, match="gradient of part 'generator' is not finite" if gradient else "loss is not"
    ):
        trained(engine)
    assert all(torch.equal(value, before[name]) for name, value in standing(engine).items())
    assert engine.counts == {}


@dataclass(frozen=True)
class Uncounted(Plain):
    """A count that is not finite."""

    use = "uncounted"

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        return replace(super().__call__(network, batch, key, state), counts={"seen": torch.tensor([1.0, math.nan])})


def test_a_count_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    engine = engine_of(Uncounted(), tmp_path)
    before = standing(engine)
    with pytest.raises(NumericsError, match="loss is not finite"):
        trained(engine)
    assert all(torch.equal(value, before[name]) for name, value in standing(engine).items())
    assert engine.counts == {}


def test_a_rehearsal_leaves_parts_as_they_are(tmp_path: Path) -> None:
    engine = engine_of(Players(), tmp_path)
    before = standing(engine)
    rehearse(engine.run, engine, 4)
    check_room(engine.run, engine)
    assert all(torch.equal(value, before[name]) for name, value in standing(engine).items())
    lines, fresh = trained(engine), trained(engine_of(Players(), tmp_path))
    assert lines == fresh


def test_only_of_speaks_to_a_part(tmp_path: Path) -> None:
    """The network's backward reaches z too (it descends what z ascends), and leaves no gradient there."""
    engine = engine_of(Players(), tmp_path)
    (micro_batch,) = engine.micro_batches(next(engine.run.batches(Place(), 0)))
    loss = engine.run.objective(engine.network, micro_batch, Key(0).rows(micro_batch.position), engine.state)
    assert torch.autograd.grad(loss.total, engine.parts.modules["generator"].z, retain_graph=True)[0].abs().max() > 0
    engine.backward(loss)
    assert all(p.grad is None for module in engine.parts.modules.values() for p in module.parameters())
    assert all(p.grad is not None for p in engine.parameters.values())


@dataclass(frozen=True)
class Owning(Objective):
    """A plain loss, and parts as given."""

    owned: Any
    of: str = ""

    use = "owning"

    def parts(self, network: Any, data: Any) -> Any:
        return self.owned(network)

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        loss = Plain()(network, batch, key, state)
        return replace(loss, of={self.of: loss.total} if self.of else {})

    def cost(self) -> float:
        return 3


def reached(head: nn.Module) -> nn.Module:
    """Another module over the same weights, under another parameter."""
    own = nn.Linear(1, 1, bias=False)
    own.weight = nn.Parameter(head.head.weight.data.view(-1))
    return own


def twice(module: nn.Module) -> dict[str, Part]:
    return {"c": Part(module, HEAD), "d": Part(module)}


@dataclass(frozen=True)
class Keeping(Plain):
    """A plain loss, a frozen teacher with BatchNorm, a copy of the network, its average and that one's."""

    use = "keeping"

    def parts(self, network: Any, data: Any) -> dict[str, Part]:
        return {
            "own": Part(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))),
            "copy": Part(deepcopy(network)),
            "average": Part(deepcopy(network), average_of="network"),
            "slower": Part(deepcopy(network), average_of="average"),
        }


def test_a_frozen_teacher_with_batchnorm_sees_every_image_alone(tmp_path: Path) -> None:
    """Of one's own or a copy of the network: running statistics, and none moved."""
    engine = engine_of(Keeping(), tmp_path, updates=2)
    before = standing(engine)
    trained(engine)
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    for name in ("own", "copy"):
        module = engine.parts.modules[name]
        together, alone = module(images), torch.cat([module(image[None]) for image in images])
        torch.testing.assert_close(together, alone)
        kept = {key: value for key, value in standing(engine).items() if key.startswith(name)}
        assert all(torch.equal(value, before[key]) for key, value in kept.items())


def test_parts_begin_with_the_weights_that_the_run_starts_from(tmp_path: Path) -> None:
    """Frozen copies, averages and averages of averages; what is drawn is drawn as before."""
    donor = engine_of(Plain(), tmp_path, seed=1)
    engine = engine_of(Keeping(), tmp_path)
    engine.begin_with(weights(donor), "donor")
    for name in ("copy", "average", "slower"):
        found = engine.parts.modules[name].model.state_dict()
        assert all(torch.equal(value, found[key]) for key, value in weights(donor).items())
    calibrated = engine_of(Keeping(), tmp_path)
    calibrated.begin_calibrated(lambda model: nn.init.ones_(model.head.head.weight))
    for name in ("copy", "average", "slower"):
        assert bool((calibrated.parts.modules[name].model.head.head.weight == 1).all())
    players, drawn = engine_of(Players(), tmp_path), engine_of(Players(), tmp_path)
    players.begin_with(weights(donor), "donor")
    assert torch.equal(players.parts.modules["generator"].z, drawn.parts.modules["generator"].z)


@pytest.mark.parametrize(
    ("owned", "of", "message"),
    [
        (lambda n: {"d": Part(nn.BatchNorm1d(3), HEAD)}, "", r"part 'd'.*BatchNorm1d.* would depend on the ranks"),
        (lambda n: {"d": Part(nn.Dropout(0.5), HEAD)}, "", r"part 'd'.*no key decides"),
        (lambda n: {"d": Part(n.model.head, HEAD)}, "", r"part 'd' .*is a piece of the network.*deepcopy"),
        (lambda n: {"d": Part(n.model.head)}, "", r"part 'd' .*is a piece of the network"),
        (lambda n: {"d": Part(n, average_of="network")}, "", r"part 'd' .*is a piece of the network"),
        (lambda n: {"d": Part(reached(n.model.head))}, "", r"part 'd' .*shares weights with it"),
        (lambda n: twice(nn.Linear(3, 3)), "", r"part '.' .*or of another part"),
        (lambda n: {"d": Part(deepcopy(n.model), average_of="network")}, "", r"part 'd'.*copy of the network itself"),
        (lambda n: {"d": Part(deepcopy(n.model))}, "", r"part 'd'.*copy of the network itself"),
        (lambda n: {"d": Part(nn.BatchNorm1d(3, track_running_stats=False))}, "", r"part 'd'.* depend on the ranks"),
        (lambda n: {"d": Part(nn.Identity(), HEAD)}, "", r"part 'd'.*no weights to train"),
        (lambda n: {"a/b": Part(nn.Identity())}, "", r"has no slash"),
        (lambda n: {"d": Part(Shift(), average_of="c")}, "", r"average_of='c' is neither 'network' nor another part"),
        (lambda n: {"d": Part(Shift(), average_of="network")}, "", r"has other weights than it.*deepcopy"),
        (lambda n: {"d": Part(Scalar(1.0))}, "d", r"'d', which is no part with an optimiser"),
        (lambda n: {"d": Part(Scalar(1.0), HEAD)}, "b", r"'b', which is no part with an optimiser; there are: d"),
        (
            lambda n: {"d": Part(Scalar(1.0), Optimiser(name="adamv"))},
            "",
            r"part 'd'.optimiser: timm cannot",
        ),
    ],
)
def test_a_part_that_cannot_be_trained_is_refused(tmp_path: Path, owned: Any, of: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(engine_of(Owning(owned, of), tmp_path))
    with pytest.raises(ValueError, match="only one of them can move a part"):
        Part(Scalar(1.0), HEAD, average_of="network")


def test_smoothing_in_mixing_and_in_the_objective_is_refused() -> None:
    """Fault 12: both were applied."""
    with pytest.raises(ValueError, match=r"mixing\.smoothing=0\.1 and objective\.smoothing=0\.2 would both smooth"):
        toy_run(Plain(0.2), mixing=Mixup(smoothing=0.1, group=4))
    toy_run(Plain(), mixing=Mixup(smoothing=0.1, group=4))
    toy_run(Plain(0.2), mixing=Mixup(group=4))
