"""Epochs in a run as it is written: `updates: 20 epochs` becomes a number of updates of its data and batch.

Wherever a distance may stand (updates, every, warmup, milestones, points) `N epochs` may: N times as many updates as
the data set says of the batch, rounded to whole updates. What is dumped, kept and compared are updates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from robust_train.nouns import Dataset
from robust_train.read.errors import ConfigError, RunError
from robust_train.read.strict import read

EPOCHS = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?epochs?")
TEXTS = ("name", "project", "entity", "tags", "unit", "uses", "data")  # fields in which nothing is a distance


def in_updates(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A run's tree with every `N epochs` as updates; the data are made ready where there is one.

    Raises ConfigError for a field `epochs`, with what it comes to; DataError where the data are not there.
    """
    tree = dict(tree)
    if "epochs" in tree:
        raise ConfigError(f"run.epochs: no such field of Run: {arithmetic(tree)}")
    if not _within(tree):
        return tree
    found = data_of(tree)
    if found is None:
        return {name: _with(1, value) if name not in TEXTS else value for name, value in tree.items()}
    data, batch = found
    data.prepare()
    return {name: _with(length(data, batch), value) if name not in TEXTS else value for name, value in tree.items()}


def length(data: Dataset, batch: int) -> int:
    """Updates an epoch. ConfigError where the data set is smaller than a batch."""
    epoch = data.epoch(batch)
    if epoch < 1:
        raise ConfigError(f"batch={batch} is larger than the data set, which has {data.train_size():,} samples")
    return epoch


def arithmetic(tree: Mapping[str, Any]) -> str:
    """What a number of epochs comes to, in words; without figures where the data cannot be looked at."""
    said = str(tree["epochs"])
    remedy = f"epochs are a form of updates: write updates: {said} epochs"
    try:
        found, number = data_of(tree), float(said)
        if found is None:
            return remedy
        data, batch = found
        data.prepare()
        epoch = length(data, batch)
    except (RunError, ValueError, OSError):
        return remedy
    return (
        f"{remedy}. {data.train_size():,} training samples at batch {batch:,} are {epoch:,} updates an epoch, so "
        f"{said} epochs are {round(number * epoch):,} updates"
    )


def data_of(tree: Mapping[str, Any]) -> tuple[Dataset, int] | None:
    """The data set and the batch of a tree; None where either cannot be read, which its reader will say."""
    batch, wrong = tree.get("batch"), list[str]()
    data = read(Dataset, tree.get("data"), "run.data", wrong)
    whole = isinstance(batch, int) and not isinstance(batch, bool) and batch > 0
    return (data, batch) if whole and not wrong else None  # type: ignore[return-value]


def _with(epoch: int, value: Any) -> Any:
    """A value with its epochs as updates."""
    if isinstance(value, str) and (found := EPOCHS.fullmatch(value.strip())):
        return max(1, round(float(found[1]) * epoch)) if float(found[1]) else 0
    if isinstance(value, Mapping):
        return {name: one if name in TEXTS else _with(epoch, one) for name, one in value.items()}
    return [_with(epoch, one) for one in value] if isinstance(value, (list, tuple)) else value


def _within(tree: Mapping[str, Any]) -> bool:
    return any(_with(1, value) != value for name, value in tree.items() if name not in TEXTS)
