"""What ranks see otherwise is found before the first update and named; the leading rank decides where to go on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robust_train import agreement, checkpoint, job
from robust_train.agreement import Seen, disagreements, refused
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError, DataError, RunError
from robust_train.run import Run
from tests.ranks import on_ranks
from tests.toys import register, toy_run

FIRST = Seen("a", None, "updates: 4\nbatch: 16", {"torch": "2.13"}, {"0.tar": "1"}, None, {}, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run": "updates: 4\nbatch: 32"}, "run.batch: was 16, is now 32"),
        ({"versions": {"torch": "2.12"}}, "torch is 2.12, not 2.13"),
        ({"versions": {}}, "torch is not there, not 2.13"),
        ({"data": {"0.tar": "2"}}, "data: 0.tar has changed"),
        ({"data": {}}, "data: 0.tar is gone"),
    ],
)
def test_each_disagreement_is_named_with_the_rank_and_its_node(change, said):
    other = replace(FIRST, node="b", **change)
    (line,) = disagreements([FIRST, FIRST, other])
    assert line == f"rank 2 on node b, against rank 0 on node a: {said}"
    assert disagreements([FIRST, replace(FIRST, node="b")]) == []


def test_what_one_rank_is_refused_with_all_say_with_its_node():
    bad = replace(FIRST, node="b", refused=DataError("shard 0.tar is not there"))
    told = refused([FIRST, bad])
    assert isinstance(told, DataError)
    assert str(told) == "rank 1 on node b: shard 0.tar is not there"
    assert str(refused([bad, bad])) == "shard 0.tar is not there"
    assert refused([FIRST, FIRST]) is None


def toy(folder: Path) -> Run:
    register()
    return toy_run(Plain(), folder, updates=2)


def ended(place: Place, folder: Path, how: str) -> str:
    """What a run on two ranks comes to, the second of which sees something otherwise."""
    torch.set_num_threads(1)
    run, other = toy(folder), place.rank == 1
    agreement.LAG = 0.5
    if how == "run" and other:
        run = replace(run, seed=5)
    if how == "refused" and other:
        run = replace(run, batch=17)
    if how == "versions" and other:
        agreement.versions = lambda: {"torch": "0.1"}
    if how == "checkpoint" and other:
        missing = agreement._missing
        agreement._missing = lambda path, nonce, newest: missing(path, nonce, newest and newest.with_name("99999999"))
    if how == "folder" and other:
        run = replace(run, folder=str(folder.with_name("mine")))
    try:
        return f"done {job.do(run, PlainEngine, place)['updates']}"
    except RunError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.cluster
def test_two_ranks_that_differ_both_end_with_the_same_words(tmp_path):
    """Each in its own way, and none hangs; alike they train."""
    for how, words in (
        ("run", "run.seed: was 0, is now 5"),
        ("refused", "rank 1 on node"),
        ("versions", "torch is 0.1"),
        ("folder", "run.folder"),
    ):
        one, other = on_ranks(2, ended, tmp_path / how, how)
        assert one == other
        assert words in one, how
        assert not checkpoint.saved(tmp_path / how)
    assert on_ranks(2, ended, tmp_path / "alike", "alike") == ["done 2", "done 2"]
    (tmp_path / "alike" / "summary.json").unlink()
    one, other = on_ranks(2, ended, tmp_path / "alike", "checkpoint")
    assert one == other
    assert "rank 1 on node" in one
    assert "does not see the checkpoint" in one


def test_alone_nothing_is_gathered(tmp_path):
    run = toy(tmp_path)
    assert agreement.agreed(run, Place(), dict) == ({}, None)
    assert not (tmp_path / agreement.NONCE).exists()


def test_a_folder_that_is_not_shared_or_lags_is_seen(tmp_path):
    path, newest = tmp_path / agreement.NONCE, tmp_path / "checkpoints" / "00000002"
    assert "what rank 0 writes" in agreement._missing(path, "1", None)
    path.write_text("0")
    assert "what rank 0 writes" in agreement._missing(path, "1", None)
    path.write_text("1")
    assert agreement._missing(path, "1", None) == ""
    assert "the checkpoint" in agreement._missing(path, "1", newest)
    newest.mkdir(parents=True)
    (newest / "manifest.json").write_text("{}")
    assert agreement._missing(path, "1", newest) == ""


def test_a_refusal_is_no_other_error(tmp_path):
    def refuse():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        agreement.agreed(toy(tmp_path), Place(), refuse)
