"""Checkpoints: a folder, whole or absent, that anyone can read and nobody can alter unseen."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from robust_train import checkpoint, disk
from robust_train.engines.engine import Engine
from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge, Judged
from robust_train.models.blueprint import Blueprint
from robust_train.models.timm import Timm
from robust_train.nouns import Place
from robust_train.objectives.plain import Plain
from robust_train.read.errors import CheckpointError
from robust_train.run import Run
from robust_train.settings.average import Average
from robust_train.settings.keep import Keep
from tests.toys import ToyNetwork, gone_back, saved, toy_run, trained, weights


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine after 3 updates, whose checkpoint is in the folder."""
    found = PlainEngine(toy_run(Plain(), tmp_path, updates=3))
    trained(found)
    return found


@pytest.fixture
def folder(engine: Engine) -> Path:
    return engine.run.path / "checkpoints" / "00000003"


def again(run: Run, **changes: Any) -> Engine:
    return PlainEngine(toy_run(Plain(), run.folder, updates=3, **changes))


def test_a_checkpoint_is_what_its_manifest_says(folder: Path) -> None:
    manifest = checkpoint.verify(folder)
    assert set(manifest["sha256"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json", ".yaml"}  # no pickle
    assert json.loads((folder / "data.json").read_text()) == toy_run(Plain()).data.checksums()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser-00000.safetensors", "position.json", "run.yaml"])
def test_an_altered_file_is_noticed(engine: Engine, folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is not the file that was saved.*older checkpoint"):
        gone_back(again(engine.run), folder)


def test_a_missing_file_is_noticed(engine: Engine, folder: Path) -> None:
    (folder / "optimiser-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks optimiser-00000\.safetensors"):
        gone_back(again(engine.run), folder)


def test_a_truncated_manifest_is_noticed(engine: Engine, folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(CheckpointError, match="altered or cut short"):
        gone_back(again(engine.run), folder)


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        checkpoint.verify(tmp_path)


@pytest.mark.parametrize("file", ["weights.safetensors", "run.yaml", "manifest.json"])
def test_a_full_disk_leaves_no_checkpoint_and_the_older_one_whole(engine: Engine, folder: Path, file: str) -> None:
    """At whatever file the writing ends, nothing looks like a checkpoint that is none."""
    finish = disk.settle

    def full(path: Path) -> str:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return finish(path)

    engine.updates = 4
    with mock.patch.object(disk, "settle", full), pytest.raises(OSError, match="No space left"):
        saved(engine)
    assert checkpoint.newest(engine.run.path) == folder
    saved(engine)  # what the failed one left behind is in nobody's way
    assert checkpoint.newest(engine.run.path) == folder.with_name("00000004")
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["00000003", "00000004"]


def test_a_damaged_newest_checkpoint_is_passed_over_for_an_older_whole_one(engine: Engine, folder: Path) -> None:
    engine.updates = 4
    saved(engine)
    (folder.with_name("00000004") / "weights.safetensors").write_bytes(b"")
    assert checkpoint.newest(engine.run.path) == folder
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint in .* Or delete the folder"):
        checkpoint.newest(engine.run.path)


def test_a_checkpoint_of_an_update_that_is_done_again_replaces_the_first(engine: Engine, folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"")
    saved(engine)
    checkpoint.verify(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["00000003"]


def test_a_checkpoint_of_another_model_is_refused_by_name(engine: Engine, folder: Path) -> None:
    other = again(engine.run, network=Blueprint(ToyNetwork(width=7), group=4))
    message = r"does not fit Sequential: \d+ of another shape \(layers.0.conv.weight \(6, 1, 3, 3\) instead of \(7"
    with pytest.raises(CheckpointError, match=message):
        gone_back(other, folder)


def test_a_checkpoint_without_an_average_is_no_beginning_for_a_run_that_keeps_one(engine: Engine, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no average"):
        gone_back(again(engine.run, average=Average()), folder)


def test_loading_brings_back_weights_momentum_and_position_to_the_bit(engine: Engine, folder: Path) -> None:
    fresh = again(engine.run)
    gone_back(fresh, folder)
    assert fresh.updates == 3
    assert all(torch.equal(value, weights(engine)[name]) for name, value in weights(fresh).items())
    for name in engine.parameters:
        momentum = engine.optimiser_state(name)["momentum_buffer"]
        assert momentum.abs().max() > 0
        assert torch.equal(fresh.optimiser_state(name)["momentum_buffer"], momentum)


def test_timm_loads_the_weights(tmp_path: Path) -> None:
    """With strict names and shapes, from the safetensors file alone."""
    import timm

    network = Blueprint(Timm("test_resnet"), group=4)
    made = PlainEngine(toy_run(Plain(), tmp_path, network=network))
    saved(made)
    path = tmp_path / "checkpoints" / "00000000" / "weights.safetensors"
    model = timm.create_model("test_resnet", num_classes=5, in_chans=1, checkpoint_path=str(path))
    own = model.state_dict()
    assert set(own) == set(load_file(path))
    assert all(torch.equal(value, own[name]) for name, value in weights(made).items())


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    """Rice et al. 2020: the best by validation is kept, and the run goes on."""
    engine = PlainEngine(toy_run(Plain(), tmp_path, checkpoint=Keep(1, keep=2)))
    judge = Judge(engine.run, engine)
    for update, accuracy in enumerate((0.2, 0.6, 0.5, 0.4, 0.3), 1):
        engine.updates = update
        if accuracy > judge.judged.best:
            judge.judged, judge.improved = replace(judge.judged, best=accuracy), True
        saved(engine, judge)
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["00000002", "00000004", "00000005"]
    assert checkpoint.best(tmp_path) == checkpoint.find(tmp_path) == tmp_path / "checkpoints" / "00000002"
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["accuracy"] == 0.6


def test_best_is_what_the_checkpoint_gone_on_from_knows(tmp_path: Path) -> None:
    """A run killed after a checkpoint and before its best.json: going on from it puts the file right."""
    engine = PlainEngine(toy_run(Plain(), tmp_path))
    judge = Judge(engine.run, engine)
    judge.judged, judge.improved, engine.updates = Judged(0.7), True, 2
    with mock.patch.object(checkpoint, "mark_best"):
        saved(engine, judge)
    assert checkpoint.best(tmp_path) is None
    fresh = PlainEngine(toy_run(Plain(), tmp_path))
    judge = gone_back(fresh, tmp_path / "checkpoints" / "00000002")
    assert (judge.judged.best, judge.improved) == (0.7, False)
    assert checkpoint.best(tmp_path) == tmp_path / "checkpoints" / "00000002"


def test_a_run_without_checkpoint_or_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no whole checkpoint yet"):
        checkpoint.find(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")


def test_checkpoints_are_due_every_so_many_updates_and_at_the_end() -> None:
    due = [update + 1 for update in range(10) if Keep(4).due(update, 10)]
    assert due == [4, 8, 10]
    assert [update + 1 for update in range(10) if Keep().due(update, 10)] == [10]


def test_only_the_leading_rank_writes_what_all_ranks_share(tmp_path: Path) -> None:
    """The second of two ranks: its own tensors, no text, no manifest, no name that a checkpoint has."""
    shares = [{"part-0.safetensors": {"a": torch.ones(2)}}, {"part-1.safetensors": {"b": torch.zeros(3)}}]
    sums: dict[str, str] = {}

    def gather(value: Any) -> list[Any]:
        sums.update(value or {})
        return [dict(sums)]

    folder = tmp_path / "00000001"
    making = tmp_path / "00000001.making"
    making.mkdir()
    checkpoint.write(folder, shares[1], {"never.json": "{}"}, Place(1, 2), gather)
    assert [path.name for path in making.iterdir()] == ["part-1.safetensors"]
    assert not folder.exists()
