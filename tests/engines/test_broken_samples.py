"""Samples that cannot be used: counted in the metrics, wherever and by however many parts they were met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from robust_train.engines.plain import PlainEngine
from robust_train.judging import Judge
from robust_train.nouns import Batch, Place
from robust_train.objectives.plain import Plain
from robust_train.settings.execution import Execution
from robust_train.train import train
from tests.toys import ToyImages, toy_run


@dataclass(frozen=True)
class SomeBroken(ToyImages):
    """Update u has u broken images, at its first positions."""

    missing: int = 100

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        for update, good in enumerate(super().batches(place, batch, seed, start), start):
            yield replace(good, broken=(good.position < update).float())


class Kept:
    """Records that only remember."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def add(self, update: int, metrics: dict[str, float]) -> None:
        self.lines.append(metrics)

    def close_segment(self, update: int) -> dict[str, str]:
        return {}


def broken(folder: Path, missing: int, part: int | None) -> list[float | None]:
    run = toy_run(Plain(), folder, updates=4, engine=Execution(micro_batch=part))
    run = replace(run, data=SomeBroken(missing=missing))
    records = Kept()
    torch.manual_seed(0)
    with PlainEngine(run) as engine:
        train(run, engine, Judge(run, engine), records)  # type: ignore[arg-type]
    return [line.get("data/broken") for line in records.lines if "lr" in line]


def test_broken_samples_are_counted_in_each_update_however_it_is_cut(tmp_path: Path) -> None:
    assert broken(tmp_path / "whole", 100, None) == [0, 1, 2, 3]
    assert broken(tmp_path / "parts", 100, 4) == [0, 1, 2, 3]


def test_where_none_are_allowed_there_is_nothing_to_count(tmp_path: Path) -> None:
    assert broken(tmp_path, 0, None) == [None] * 4
