"""SIGTERM: a checkpoint where there is time, the bytes of a run left alone, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robust_train import checkpoint, job, leaving
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.objectives.plain import Plain
from robust_train.read.errors import Terminated
from robust_train.records import jsonl
from tests.toys import ToyImages, register, toy_run

ROOT = Path(__file__).parent.parent
MARK = "ROBUST_TRAIN_TEST_LEAVING"
SMALL = """name: small
data: {{use: shards, train: '{home}/digits/digits-train-*.tar', validation: '{home}/digits/digits-validation-*.tar',
       classes: 10, size: 8, channels: 1, cache: '{home}/cache', workers: 1}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective: {{use: plain}}
updates: 1000000
batch: 32
folder: {home}/run
validate: {{images: 32}}
checkpoint: {{keep: 1}}
records: {{wandb: "off", progress: "off", pictures: false}}
"""


def asked_at(update: int, how):
    """ToyImages' batches, which call `how` before that update."""
    plain = ToyImages.batches

    def batches(self, *arguments):
        for number, batch in enumerate(plain(self, *arguments), arguments[-1]):
            if number == update:
                how()
            yield batch

    return batches


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The toys are found by name where a run's folder is read again."""
    register()


def test_a_run_that_is_asked_to_leave_ends_its_update_and_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    alone, asked = toy_run(Plain(), tmp_path / "alone", updates=5), toy_run(Plain(), tmp_path / "asked", updates=5)
    job.do(alone, PlainEngine, Place())
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(ToyImages, "batches", asked_at(2, terminate))
        with pytest.raises(Terminated, match="terminated after update 2, which a checkpoint holds"):
            job.do(asked, PlainEngine, Place())
    assert signal.getsignal(signal.SIGTERM) is before
    assert not leaving.asked(), "what was asked of this run is no question to the next"
    assert [path.name for path in checkpoint.saved(asked.path)] == ["00000003"]
    job.do(asked, PlainEngine, Place())
    assert (asked.path / "metrics.jsonl").read_bytes() == (alone.path / "metrics.jsonl").read_bytes()


def test_a_second_signal_or_too_long_an_update_ends_it_at_once(tmp_path, monkeypatch):
    def twice() -> None:
        terminate()
        terminate()

    def long() -> None:
        terminate()
        time.sleep(30)

    monkeypatch.setattr(leaving, "GRACE", 0.2)
    for name, how in (("twice", twice), ("long", long)):
        run = toy_run(Plain(), tmp_path / name, updates=5)
        began = time.monotonic()
        with monkeypatch.context() as patched:
            patched.setattr(ToyImages, "batches", asked_at(2, how))
            with pytest.raises(Terminated):
                job.do(run, PlainEngine, Place())
        assert checkpoint.saved(run.path) == []
        assert time.monotonic() - began < 20


def ours() -> list[int]:
    """Processes that carry the mark: the run and all that it has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={os.getpid()}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(tmp_path, number):
    """Neither a worker nor the fork server they came from, however the run ends."""
    from robust_train.data.digits import write

    write(tmp_path / "digits")
    (tmp_path / "small.yaml").write_text(SMALL.format(home=tmp_path))
    environment = {**os.environ, MARK: str(os.getpid()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "robust_train", str(tmp_path / "small.yaml")]
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while (not metrics.exists() or len(jsonl.read(metrics)) < 3) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    assert len(ours()) >= 3, "the run, its fork server and a worker"
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    ended = time.monotonic()
    while ours() and time.monotonic() - ended < 5:
        time.sleep(0.05)
    assert ours() == []
    if number == signal.SIGTERM:
        assert run.returncode == 143
        assert "which a checkpoint holds" in said
        assert len(checkpoint.saved(tmp_path / "run")) == 1
