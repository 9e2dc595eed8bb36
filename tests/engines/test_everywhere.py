"""Plain PyTorch and DeepSpeed at ZeRO 0 to 3, on one rank and two, whole and accumulated: the same numbers.

What they follow is hardest on an engine: parts and settled updates, gradients by the input that are differentiated
again, weights that no forward uses. The plain engine follows restatements in tests/engines/test_parts.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_train.engines.engine import Engine
from robust_train.engines.plain import PlainEngine
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Loss, Objective, Place
from robust_train.objectives.plain import Plain
from robust_train.run import Run
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from tests.engines.players import Hebb, IdleNetwork, Penalised, Players, Turns
from tests.engines.restated import standing
from tests.ranks import on_ranks
from tests.toys import gone_back, toy_run, trained

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

MOMENTUM = Optimiser(name="momentum", lr=0.05, weight_decay=0.3, decay_all=True)
UPDATES, LAYOUTS, SPLITS = 4, ("plain", 0, 1, 2, 3), (None, 4)
TWICE = "penalised"  # differentiates twice by the input, which ZeRO 3 refuses
ADAMW = Optimiser(name="adamw", lr=0.01, weight_decay=0.3)


CROSSED = ((1, 2), (2, "plain"), (2, 1), (2, 3))  # (world, layout) by which what is read by all others was written


def runs() -> dict[str, Run]:
    """What is followed, by name."""
    still = toy_run(Plain(), updates=UPDATES, network=Blueprint(IdleNetwork(), group=4))
    return {
        "players": toy_run(Players(), updates=UPDATES),
        "turns": toy_run(Turns(), updates=UPDATES),
        "hebb": toy_run(Hebb(), updates=UPDATES),
        "penalised": toy_run(Penalised(), updates=UPDATES),
        "idle, momentum": replace(still, optimiser=MOMENTUM),
        "idle, adamw": replace(still, optimiser=ADAMW),
    }


def engine_of(run: Run, layout: Any, place: Place, split: int | None) -> Engine:
    """An engine of that layout: plain, or a ZeRO stage."""
    stage = 0 if layout == "plain" else layout
    run = replace(run, engine=Execution(zero=stage, micro_batch=split, persist=0))  # at 3 small weights are cut too
    if layout == "plain":
        return PlainEngine(run, place)
    from robust_train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(run, place)


def layouts(place: Place, folder: Path) -> Iterator[tuple[str, Run, Any, int | None]]:
    """(name, run, layout, micro-batch) of all that is followed at this world size."""
    for name, run in runs().items():
        for layout in LAYOUTS:
            for split in SPLITS:
                if done(name, layout, split):
                    where = folder / f"{name}-{place.world}-{layout}-{split}"
                    yield name, replace(run, folder=str(where), checkpoint=Keep(2)), layout, split


def done(name: str, layout: Any, split: int | None) -> bool:
    """Whether a run is followed in a layout: at ZeRO 3 whole or accumulated, for a layer's gathers take their time."""
    return layout != 3 or (name != TWICE and split == (None if name == "turns" else 4))


def count(name: str) -> int:
    """Layouts of one world size in which a run is followed."""
    return sum(done(name, layout, split) for layout in LAYOUTS for split in SPLITS)


def followed(place: Place, folder: Path) -> dict[Any, Any]:
    """{(name, world, layout, micro-batch): (metrics, all weights)}; a checkpoint is written on the way."""
    found = {}
    for name, run, layout, split in layouts(place, folder):
        with engine_of(run, layout, place, split) as engine:
            found[name, place.world, layout, split] = trained(engine), standing(engine)
    return found


def gone_on(place: Place, folder: Path) -> dict[Any, Any]:
    """The same, each gone on from its own checkpoint at update 2; and players from those of other layouts."""
    found = {}
    for name, run, layout, split in layouts(place, folder):
        if name in ("players", "turns"):
            with engine_of(replace(run, folder=str(folder / "read")), layout, place, split) as engine:
                gone_back(engine, Path(run.folder) / "checkpoints" / "00000002")
                found[name, place.world, layout, split] = trained(engine), standing(engine)
        if name == "turns" and split is None:
            for world, other in CROSSED:
                with engine_of(replace(run, folder=str(folder / "read")), layout, place, split) as engine:
                    written = folder / f"{name}-{world}-{other}-{split}" / "checkpoints" / "00000002"
                    gone_back(engine, written)
                    at_2 = standing(engine), deepcopy(engine.parts.held())
                    trained(engine)
                    found["crossed", place.world, layout, (world, other)] = *at_2, standing(engine)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("everywhere")
    straight: dict[Any, Any] = {}
    for world in (1, 2):
        first, *others = on_ranks(world, followed, folder)
        for other in others:
            assert all(same(lines[1], other[key][1]) for key, lines in first.items())  # ranks hold the same weights
        straight |= first
    return straight, on_ranks(1, gone_on, folder)[0] | on_ranks(2, gone_on, folder)[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", runs())
def test_every_engine_follows_the_plain_one(found: Any, name: str) -> None:
    """To 1e-5 in float32: metrics, the network, parts and averages. Fault 1: `penalised`; fault 5: `idle`."""
    straight, _ = found
    lines, weights = straight[name, 1, "plain", None]
    others = {key: value for key, value in straight.items() if key[0] == name}
    assert len(others) == 2 * count(name)
    for key, (theirs, held) in others.items():
        for mine, line in zip(lines, theirs, strict=True):
            assert mine == pytest.approx(line, rel=1e-5, abs=1e-5), key
        for n, value in weights.items():
            torch.testing.assert_close(value, held[n], rtol=1e-5, atol=1e-5, msg=lambda t, k=key, n=n: f"{k} {n}: {t}")


def test_weights_that_nothing_uses_decay_as_all_others(found: Any) -> None:
    """A gradient of zero, on every engine: AdamW leaves (1 - lr wd)^u of them."""
    straight, _ = found
    for (name, *_), (_, held) in straight.items():
        if name == "idle, adamw":
            made = runs()[name].build(torch.device("cpu")).model.idle  # type: ignore[union-attr]
            torch.testing.assert_close(held["network/idle.weight"], made.weight.detach() * (1 - 0.01 * 0.3) ** UPDATES)
            torch.testing.assert_close(held["network/idle.bias"], made.bias.detach())  # biases do not decay


@pytest.mark.parametrize("name", ["players", "turns"])
def test_parts_go_on_to_the_bit(found: Any, name: str) -> None:
    """From a checkpoint of the same layout: weights, optimisers' moments, averages and metrics are the same bytes."""
    straight, again = found
    ours = {key: value for key, value in again.items() if key[0] == name}
    assert len(ours) == 2 * count(name)
    for key, (lines, held) in ours.items():
        assert lines == straight[key][0][2:], key
        assert same(held, straight[key][1]), key


def test_parts_are_read_to_the_bit_at_any_world_size_and_stage(found: Any) -> None:
    straight, again = found
    crossed = {key: value for key, value in again.items() if key[0] == "crossed"}
    first: dict[Any, Any] = {}
    for (_, world, layout, source), (held, (tensors, numbers), last) in crossed.items():
        like, (like_tensors, like_numbers) = first.setdefault(source, (held, (tensors, numbers)))
        assert same(held, like), (world, layout, source)
        assert same(tensors, like_tensors), (world, layout, source)
        assert numbers == like_numbers
        for n, value in straight["turns", 1, "plain", None][1].items():
            torch.testing.assert_close(value, last[n], rtol=1e-5, atol=1e-5)
    assert len(crossed) == 2 * len(LAYOUTS) * len(CROSSED)
    assert any("exp_avg" in name for name in tensors)


@dataclass(frozen=True)
class Naming(Objective):
    """A plain loss with one more metric, count or sum in some places."""

    kind: str
    update: int
    rank: int

    use = "naming"

    def __call__(self, network: Any, batch: Any, key: Any, state: Any) -> Loss:
        loss = Plain()(network, batch, key, state)
        updates = int(state.counts.get("updates", torch.zeros(())))
        counts = {"updates": batch.images.new_tensor(len(batch) / 16)}
        odd = updates >= self.update and int(batch.position[0]) // 8 == self.rank
        given: dict[str, Any] = {"metrics": dict(loss.metrics), "counts": counts, "sums": {}}
        if odd:
            given[self.kind]["more"] = batch.images.sum()
        return Loss(loss.total, **given)

    def cost(self) -> float:
        return 3


def refused(place: Place, layout: Any) -> list[str]:
    """What each rank says of names that differ between the ranks, from the first update on or from the third."""
    said = []
    for kind in ("metrics", "counts", "sums"):
        for update in (0, 2):
            with engine_of(toy_run(Naming(kind, update, 1), updates=5), layout, place, None) as engine:
                try:
                    trained(engine)
                except Exception as error:  # any: what it is, is asserted
                    said.append(f"{type(error).__name__}: {error}")
    return said


@pytest.mark.parametrize("layout", ["plain", 2])
def test_ranks_that_name_unlike_things_are_refused_by_both(layout: Any) -> None:
    """Fault 12: they would add unlike vectors. In full at the first update, by a digest in the flat vector later."""
    for rank, said in enumerate(on_ranks(2, refused, layout)):
        assert len(said) == 6
        for number, text in enumerate(said):
            kind = ("metrics", "counts", "sums")[number // 2]
            assert text.startswith(f"ConfigError: update {2 * (number % 2)}: objective naming gives"), text
            assert f"on rank {1 - rank} than on rank {rank}" in text
            assert (f"{kind} more []" in text) == (number % 2 == 0)


def test_micro_batches_that_name_unlike_things_are_refused() -> None:
    """Fault 12: what a later micro-batch alone named was dropped in silence."""
    for kind in ("metrics", "counts", "sums"):
        engine = PlainEngine(toy_run(Naming(kind, 0, 1), updates=1, engine=Execution(micro_batch=8)))
        with pytest.raises(Exception, match=rf"unlike things \({kind} more \[\]\) in one micro-batch than in another"):
            trained(engine)
