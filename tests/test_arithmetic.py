"""Float32 is float32 wherever a process trains or judges (fault 6: training left TF32 on)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robust_train import command
from robust_train.engines import deepspeed
from robust_train.engines.plain import PlainEngine
from robust_train.launch import cluster, deal, distill, packing
from robust_train.objectives.plain import Plain
from robust_train.tools.shared import device_of
from tests.toys import toy_run


class Reached(Exception):
    """The work would begin here."""


@pytest.fixture(autouse=True)
def rounding() -> Iterator[None]:
    """A process as PyTorch begins it, at its loosest."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    threads = torch.get_num_threads()
    for flag in flags:
        flag.allow_tf32 = True
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value
    torch.set_num_threads(threads)


def train_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.here(toy_run(Plain(), folder))


def train_in_a_sweeps_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing.alone(toy_run(Plain(), folder))


def train_in_a_ray_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed, "DeepSpeedEngine", PlainEngine)
    for heard in ("speaking", "obeying"):
        monkeypatch.setattr(cluster, heard, lambda *_: nullcontext())
    cluster.do(toy_run(Plain(), folder), None, None)  # type: ignore[arg-type]


def evaluate_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device_of(argparse.Namespace(device="cpu"))


def evaluate_a_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deal.Worker(SimpleNamespace(value=None), SimpleNamespace(value=None), gpu=False)  # type: ignore[arg-type]


def judge_a_distillation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Reached

    found = SimpleNamespace(entries=lambda: [], judge=SimpleNamespace(devices=1), folder=folder)
    monkeypatch.setattr("robust_train.evaluate.panel.Panel", lambda *_: stop())
    course = SimpleNamespace(corruptions=())
    with pytest.raises(Reached):
        distill.judge(found, course, toy_run(Plain(), folder), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "entry",
    [
        train_here,
        train_in_a_sweeps_worker,
        train_in_a_ray_worker,
        evaluate_here,
        evaluate_a_share,
        judge_a_distillation,
    ],
    ids=lambda entry: entry.__name__,
)
def test_every_process_that_trains_or_judges_multiplies_in_full_float32(entry, tmp_path, monkeypatch):
    entry(tmp_path, monkeypatch)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
