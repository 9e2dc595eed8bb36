"""Law 3: any fault costs time, never results.

A run that is killed by SIGKILL, anywhere, and started again by the same command ends with the bytes of one that was
left alone. A checkpoint is gone on from at any world size and ZeRO stage, to the digits of float32.
"""

from __future__ import annotations

import os
import signal
import socket
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robust_train import checkpoint
from robust_train.engines.engine import Engine
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.optimiser import Optimiser
from tests.laws import toy_job
from tests.laws.toy_job import UPDATES
from tests.ranks import on_ranks, server
from tests.registered import every_objective
from tests.toys import gone_back, saved, toy_run, trained, weights

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def start(world: int, *arguments: str) -> list[int]:
    """Start a job's ranks as torchrun would, wait for them, and give their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        said = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in said.items()}, "OMP_NUM_THREADS": "1"}
        ranks.append(server().Process(target=toy_job.rank, args=(environment, *arguments)))
        ranks[-1].start()
    for one in ranks:
        one.join()
    return [one.exitcode for one in ranks]


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in the last checkpoint, and metrics.jsonl."""
    last = folder / "checkpoints" / f"{UPDATES:08d}"
    checkpoint.verify(last)
    files = {path.name: path.read_bytes() for path in last.iterdir() if path.suffix == ".safetensors"}
    return {**files, "metrics.jsonl": (folder / "metrics.jsonl").read_bytes()}


@pytest.mark.parametrize(("engine", "world"), [("plain", 1), ("2", 2)])
def test_a_killed_run_ends_with_the_bytes_of_one_left_alone(tmp_path: Path, engine: str, world: int) -> None:
    """Killed between checkpoints, then while the last checkpoint is written: 6 updates equal 3 + 3."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert start(world, str(alone), engine) == [0] * world
    assert start(world, str(killed), engine, "update 4")[-1] == -signal.SIGKILL
    assert "00000003" in [path.name for path in checkpoint.saved(killed)]
    assert start(world, str(killed), engine, "manifest")[0] == -signal.SIGKILL
    assert not (killed / "checkpoints" / f"{UPDATES:08d}").exists()
    assert start(world, str(killed), engine) == [0] * world

    assert contents(killed) == contents(alone)
    assert checkpoint.best(killed).name == checkpoint.best(alone).name  # type: ignore[union-attr]


LAYOUTS = {"momentum": ("plain", 0, 1, 2), "adamw": ("plain", 0, 1, 2, 3)}  # by optimiser
OPTIMISERS = {
    "momentum": Optimiser(name="momentum", lr=0.02, weight_decay=1e-3),
    "adamw": Optimiser(name="adamw", lr=0.01, weight_decay=0.1),
}


def engine_of(layout: Any, optimiser: str, folder: Path, place: Place, updates: int) -> Engine:
    """An engine of that layout: plain, or a ZeRO stage."""
    stage = 0 if layout == "plain" else layout
    changes = {"optimiser": OPTIMISERS[optimiser], "average": Average(0.9), "engine": Execution(zero=stage, persist=0)}
    run = toy_run(every_objective(1)["madry"], folder, updates=updates, **changes)
    if layout == "plain":
        return PlainEngine(run, place)
    from robust_train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(run, place)


def written(place: Place, folder: Path) -> None:
    """Three updates and a checkpoint, by each layout with each optimiser."""
    for optimiser in OPTIMISERS:
        for layout in LAYOUTS[optimiser]:
            with engine_of(layout, optimiser, folder / f"{place.world}-{layout}-{optimiser}", place, 3) as engine:
                trained(engine)  # the last update is saved


def gone_on(place: Place, folder: Path) -> dict[Any, Any]:
    """{(optimiser, written by, read by): (weights, average, state of the optimiser) at update 3, weights at 6}."""
    found = {}
    for path in sorted(folder.iterdir()):
        by, optimiser = path.name.rpartition("-")[::2]
        for layout in LAYOUTS[optimiser]:
            with engine_of(layout, optimiser, Path("read"), place, 6) as engine:
                gone_back(engine, path / "checkpoints" / "00000003")
                states = {name: deepcopy(engine.optimiser_state(name)) for name in engine.parameters}
                at_3 = weights(engine), states
                trained(engine)
                found[optimiser, by, f"{place.world}-{layout}"] = *at_3, weights(engine)
    return found


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp("crossed")
    for world in (1, 2):
        on_ranks(world, written, folder)
    alone = on_ranks(1, gone_on, folder)[0]
    together, other = on_ranks(2, gone_on, folder)
    for key, (_, _, last) in together.items():
        assert all(torch.equal(value, other[key][2][name]) for name, value in last.items())
    return alone | together


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor], what: Any) -> None:
    """To 6 digits."""
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=2e-6, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_checkpoint_is_gone_on_from_at_any_world_size_and_stage(crossed: Any, optimiser: str, tmp_path: Path) -> None:
    """2 ranks to 1 and back, plain PyTorch, ZeRO 0 to 3: the weights of one uninterrupted run."""
    engine = engine_of("plain", optimiser, tmp_path, Place(), 6)
    trained(engine)
    last = {key[1:]: found[2] for key, found in crossed.items() if key[0] == optimiser}
    assert len(last) == (2 * len(LAYOUTS[optimiser])) ** 2
    for layouts, found in last.items():
        assert_alike(found, weights(engine), layouts)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_layout_reads_what_was_saved_to_the_bit(crossed: Any, optimiser: str) -> None:
    """Weights, and the optimiser's moments and counters of every parameter."""
    kinds = {"momentum": {"momentum_buffer"}, "adamw": {"exp_avg", "exp_avg_sq", "step"}}[optimiser]
    first: dict[str, Any] = {}
    for (name, by, _), (held, states, _) in crossed.items():
        if name == optimiser:
            assert all(set(state) == kinds for state in states.values())
            assert all(float(state.get("step", 3)) == 3 for state in states.values())
            like, like_states = first.setdefault(by, (held, states))
            for key, value in held.items():
                assert torch.equal(value, like[key])
            for key, state in states.items():
                assert all(torch.equal(value, like_states[key][kind]) for kind, value in state.items())


def test_going_back_brings_back_everything(tmp_path: Path) -> None:
    """In one process: an engine that is loaded again after more updates does them again to the bit."""
    engine = engine_of("plain", "adamw", tmp_path, Place(), 6)
    trained(engine)
    last, average = weights(engine), {k: v.clone() for k, v in engine.averaged.kept.items()}  # type: ignore[union-attr]
    saved(engine)
    fresh = engine_of("plain", "adamw", tmp_path, Place(), 6)
    gone_back(fresh, tmp_path / "checkpoints" / "00000006")
    assert all(torch.equal(value, last[name]) for name, value in weights(fresh).items())
    assert all(torch.equal(value, average[name]) for name, value in fresh.averaged.kept.items())  # type: ignore[union-attr]
