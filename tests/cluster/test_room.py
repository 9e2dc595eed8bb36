"""What a launch and a submission decide before Ray is asked for anything."""

from __future__ import annotations

import argparse
import errno
import pickle
from pathlib import Path

import pytest

from robust_train.launch import cluster, submit, wire
from robust_train.read.errors import ConfigError, DataError, NumericsError
from robust_train.settings.cluster import Cluster

NODE = {"CPU": 4.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("wanted", "there", "words"),
    [
        (Cluster(devices=5), [NODE], "4 CPUs .*the run wants 5: .* 4 find room. Say cluster.devices=4"),
        (Cluster(devices=4, cpus=3), [NODE] * 3, "12 CPUs .*wants 12: .* 3 find room"),  # each node holds one
        (Cluster(devices=1, cpus=16), [NODE], "wants 16: .* 0 find room. Say cluster.cpus=4"),
        (Cluster(devices=1, gpu=True), [NODE], "0 GPUs, the run wants 1 .* cluster.gpu=false"),
        (Cluster(devices=4, gpu=True), [{**NODE, "GPU": 2.0}], "2 GPUs, the run wants 4 .* cluster.devices=2"),
        (Cluster(devices=2, cpus=3, gpu=True), [{**NODE, "GPU": 2.0}], "1 find room"),  # GPUs enough, cores too few
        (Cluster(), [], "0 CPUs"),
    ],
)
def test_a_run_that_no_node_can_ever_hold_is_refused_with_what_would_fit(wanted, there, words) -> None:
    with pytest.raises(ConfigError, match=words):
        cluster.room(wanted, there)


def test_a_run_that_fits_node_by_node_is_not_refused() -> None:
    cluster.room(Cluster(devices=8), [NODE, NODE])
    cluster.room(Cluster(devices=8, cpus=0.5), [NODE])
    cluster.room(Cluster(devices=3, gpu=True, cpus=1), [{**NODE, "GPU": 2.0}, {**NODE, "GPU": 1.0}])


def test_bad_input_full_disks_and_bugs_are_not_tried_again_and_lost_peers_are() -> None:
    for error in (ConfigError("x"), DataError("x"), NumericsError("x"), TypeError("x"), OSError(errno.ENOSPC, "full")):
        assert wire.incurable(error)
    for error in (RuntimeError("Connection closed by peer"), MemoryError(), OSError(errno.EIO, "x"), EOFError()):
        assert not wire.incurable(error)


def test_what_is_said_arrives_once_in_order_and_the_first_refusal_counts() -> None:
    said = wire.Said()
    said.say("a")
    said.say("b\n")
    assert (said.heard(), said.heard()) == ("ab\n", "")
    first = ConfigError("first")
    said.refuse(first)
    said.refuse(ConfigError("second"))
    assert said.refusal() is first


def test_a_terminal_elsewhere_gets_whole_lines_and_says_what_it_is() -> None:
    class Call:
        def __init__(self) -> None:
            self.texts: list[str] = []

        def remote(self, text: str) -> None:
            self.texts.append(text)

    class Actor:
        say = Call()

    bar = wire.Distant(Actor(), wire.Terminal(80, 24, live=True))
    print("update 1", end="", file=bar)
    assert Actor.say.texts == []
    print(" of 2", file=bar)
    print("3", end="", file=bar, flush=True)
    assert Actor.say.texts == ["update 1 of 2\n", "3"]
    assert bar.isatty()
    assert not wire.Distant(Actor(), wire.Terminal(80, 24, live=False)).isatty()


def test_an_error_keeps_its_words_on_the_way_from_a_rank() -> None:
    error = DataError("shard a.tar: sample 3 has no .cls entry")
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there)) == (DataError, str(error))


def test_a_submitted_job_works_in_a_folder_that_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder of a job is a copy that vanishes with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cluster.HOME, str(tmp_path / "kept"))
    monkeypatch.delenv(cluster.INSIDE, raising=False)
    assert cluster.enter_home() == tmp_path
    monkeypatch.setenv(cluster.INSIDE, "{}")
    assert cluster.enter_home() == tmp_path / "kept" == Path.cwd()
    monkeypatch.delenv(cluster.HOME)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster.enter_home() == tmp_path / "robust_train" == Path.cwd()


def test_a_job_is_the_same_command_in_the_tree_that_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(submit.ROOT / "configs")
    words = argparse.Namespace(run="demo.yaml", settings=["seed=1", "optimiser.lr={use: cosine}"], check=False)
    same = "python -m robust_train.launch.train configs/demo.yaml seed=1 'optimiser.lr={use: cosine}'"
    assert submit.entrypoint(words) == same
    words.run = "configs/demo.yaml"  # not there from here: the package's own, which is there where the job works
    assert submit.entrypoint(words) == same
    words.run = "/elsewhere/x.yaml"
    with pytest.raises(ConfigError, match="outside of"):
        submit.entrypoint(words)


def test_a_job_gets_the_variables_that_are_named_and_its_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv(cluster.HOME, raising=False)
    assert submit.variables(["WANDB_MODE", "A=b=c"]) == {"WANDB_MODE": "offline", "A": "b=c"}
    monkeypatch.setenv(cluster.HOME, "/shared")
    assert submit.variables([]) == {cluster.HOME: "/shared"}
    with pytest.raises(ConfigError, match="--env ABSENT"):
        submit.variables(["ABSENT"])
