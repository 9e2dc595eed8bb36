"""A run that changes: one that branches from another's checkpoint, more updates in place, and epochs for updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from robust_train import checkpoint, job
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.ownership import same
from robust_train.read import yaml
from robust_train.read.errors import ConfigError
from robust_train.records import jsonl
from robust_train.records.records import _config
from robust_train.run import Run

SMALL = """name: small
data: {{use: digits, folder: {home}/digits}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective: {{use: plain}}
updates: 4
batch: 32
folder: {home}/a
optimiser: {{name: adamw, lr: 0.01}}
average: {{decay: 0.9}}
validate: {{images: 32}}
checkpoint: {{every: 2}}
records: {{wandb: "off", progress: "off", pictures: false}}
"""


def run(home: Path, *changes: str) -> Run:
    return Run.load(SMALL.format(home=home), list(changes))


def done(one: Run) -> dict[str, bytes]:
    """What a run comes to: the files of its last checkpoint, and its lines of training."""
    job.do(one, PlainEngine, Place())
    last = checkpoint.saved(one.path)[-1]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    lines = [record for record in jsonl.read(one.path / "metrics.jsonl") if "lr" in record]
    return {**files, "lines": json.dumps(lines).encode()}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("branches")
    done(run(home))
    return home


def test_a_branch_with_nothing_changed_is_the_run_that_was_longer_from_the_start(home):
    """Optimiser, average, state and position: the bytes of six updates in one go, though the folder is another."""
    whole = done(run(home, f"folder={home}/whole", "updates=6"))
    branch = done(run(home, f"folder={home}/b", "updates=6", f"branch={home}/a/checkpoints/00000004"))
    assert branch == whole
    changed = done(run(home, f"folder={home}/c", "updates=6", f"branch={home}/a", "optimiser.lr=0.02", "batch=16"))
    assert changed != whole
    assert [r["update"] for r in jsonl.read(home / "c" / "metrics.jsonl") if r.get("lr") == 0.02] == [4, 5]


def test_its_lineage_is_told_and_outlives_what_it_branched_from(home, tmp_path):
    shutil.copytree(home / "a", tmp_path / "a")
    first = run(home, f"folder={tmp_path}/b", "updates=6", f"branch={tmp_path}/a")
    done(first)
    second = run(home, f"folder={tmp_path}/c", "updates=8", f"branch={tmp_path}/b/checkpoints/00000006", "name=third")
    done(second)
    told = json.loads((tmp_path / "c" / "lineage.json").read_text())
    assert [(one["run"], one["updates"]) for one in told] == [("small", 6), ("small", 4)]
    assert (tmp_path / "c" / "run.yaml").read_text().startswith(f"# branches from {tmp_path}/b/checkpoints/00000006 (")
    assert yaml.read(_config(second.path, second))["lineage"] == told  # what W&B is given
    lines = jsonl.read(tmp_path / "c" / "metrics.jsonl")
    assert [r["branch/updates"] for r in lines if "branch/updates" in r] == [4, 6]
    assert [r["update"] for r in lines if "lr" in r] == list(range(8))  # with what came before it
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "c" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "c" / "checkpoints" / "00000008")
    if checkpoint.saved(tmp_path / "c"):
        done(second)


def test_a_killed_branch_ends_with_the_bytes_of_one_left_alone(home, tmp_path):
    words = ["updates=7", f"branch={home}/a"]
    alone = done(run(home, f"folder={tmp_path}/alone", *words))
    killed = run(home, f"folder={tmp_path}/killed", *words)
    done(killed)
    metrics = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    for left in (1, 0):  # begun anew from its own checkpoint; from the branch
        (killed.path / "summary.json").unlink()
        for path in checkpoint.saved(killed.path)[left:]:
            shutil.rmtree(path)
        assert done(killed) == alone
        assert (killed.path / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["branch={home}/a", "updates=4"], "has done 4 updates, and this run has 4: say updates=5"),
        (["branch={home}/a", "updates=6", "optimiser.name=sgd"], "start="),
        (["branch={home}/digits", "updates=6"], "no checkpoint of a run"),
        (["branch={home}/nowhere", "updates=6"], "no checkpoint of a run"),
    ],
)
def test_a_branch_that_cannot_be_is_refused_before_anything_is_written(home, tmp_path, changes, said):
    words = [change.format(home=home) for change in changes]
    with pytest.raises(ConfigError, match=said):
        done(run(home, f"folder={tmp_path}/x", *words))
    with pytest.raises(ConfigError, match=said):
        job.look(run(home, f"folder={tmp_path}/x", *words), PlainEngine, Place(), 1)
    assert not (tmp_path / "x").exists()


def test_updates_are_raised_in_place_where_nothing_done_would_have_been_otherwise(home, tmp_path):
    shutil.copytree(home / "a", tmp_path / "a")
    longer = done(run(home, f"folder={tmp_path}/a", "updates=6"))
    assert longer == done(run(home, f"folder={tmp_path}/whole", "updates=6"))
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["updates"] == 6


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimiser.lr={use: cosine, peak: 0.1}", "optimiser.lr would have been another"),
        ("optimiser.lr={use: ramp, to: 0.1, updates: 50%}", "optimiser.lr would have been another"),
        ("validate.every=50%", "validate.every=50% is a share"),
        ("name=x", "cannot be taken back"),
    ],
)
def test_elsewhere_they_are_refused_with_the_way_to_do_it(home, tmp_path, setting, said):
    done(run(home, f"folder={tmp_path}/a", setting))
    fewer = "updates=3" if "taken back" in said else "updates=8"
    with pytest.raises(ConfigError, match=rf"(?s)updates: was 4.*{said}.*branch={tmp_path}/a"):
        same(run(home, f"folder={tmp_path}/a", setting, fewer))


def test_a_schedule_that_is_alike_so_far_may_go_on_longer(home, tmp_path):
    steps = "optimiser.lr={use: steps, value: 0.1, milestones: [2, 100]}"
    one = run(home, f"folder={tmp_path}/a", steps)
    done(one)
    same(run(home, f"folder={tmp_path}/a", steps, "updates=400"))


def test_epochs_are_a_form_of_updates(home):
    """1,437 digits at batch 32: 44 updates an epoch."""
    found = run(
        home,
        "updates=20 epochs",
        "validate.every=1 epoch",
        "checkpoint.every=0.5 epochs",
        "optimiser.lr={use: cosine, peak: 0.1, warmup: 1.5 epochs}",
        "name=20 epochs",
    )
    assert (found.updates, found.validate.every, found.checkpoint.every) == (880, 44, 22)
    assert found.optimiser.lr.warmup == 66
    assert found.name == "20 epochs"
    assert Run.load(found.dump()) == found
    points = "optimiser.lr={use: linear, points: [[0, 0], [1 epoch, 0.2], [2 epochs, 0]]}"
    assert run(home, points).optimiser.lr.points == ((0, 0.0), (44, 0.2), (88, 0.0))


def test_streams_have_epochs_of_their_own(home):
    from robust_train.data.shards import Shards

    shards = Shards(f"{home}/digits/digits-train-*.tar", 10, 8, channels=1, reader="streams", streams=8)
    assert shards.epoch(32) == 1437 // 8 // 4 == 44
    assert shards.epoch(64) == 1437 // 8 // 8


def test_a_field_epochs_says_what_it_comes_to(home):
    with pytest.raises(
        ConfigError, match=r"write updates: 20 epochs.*44 updates an epoch, so 20 epochs are 880 updates"
    ):
        run(home, "epochs=20")
    with pytest.raises(ConfigError, match=r"write updates: 20 epochs$"):
        run(home, "epochs=20", "data={use: shards, train: nowhere.tar, classes: 2, size: 8}")


def test_epochs_of_what_cannot_be_read_are_left_to_its_reader(home):
    with pytest.raises(ConfigError, match="1 mistake"):
        run(home, "updates=2 epochs", "batch=0")
    with pytest.raises(ConfigError, match="larger than the data set"):
        run(home, "updates=2 epochs", "batch=5000")
