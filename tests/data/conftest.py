"""Small shards whose images say which sample they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from numbered import label_of, picture

from robust_train.data.manifest import split_of
from robust_train.data.write import sample, write_shard
from robust_train.disk import write_json


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., list[str]]:
    """write_shards(folder, sizes, suffixes, manifest=True) -> paths; sample numbers count through the shards."""

    def write(folder: Path, sizes: Sequence[int], suffixes: Sequence[str] | str = ".tar", manifest: bool = True):
        folder.mkdir(parents=True, exist_ok=True)
        entries, first = [], 0
        for i, size in enumerate(sizes):
            suffix = suffixes if isinstance(suffixes, str) else suffixes[i]
            numbers = range(first, first + size)
            first += size
            samples = (sample(f"s{n:05d}", "png", picture(n), label_of(n)) for n in numbers)
            entries.append(write_shard(folder / f"part-{i:03d}{suffix}", samples))
        if manifest:
            write_json(folder / "manifest.json", {"splits": {"train": split_of(entries)}})
        return [str(folder / entry.file) for entry in entries]

    return write


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real shards: ROBUST_TRAIN_DATA, or shared/data beside the repository. Mark what asks `data`."""
    folder = Path(os.environ.get("ROBUST_TRAIN_DATA", Path(__file__).parents[3] / "shared" / "data"))
    assert folder.exists(), f"{folder} does not exist: name the folder of real shards in ROBUST_TRAIN_DATA"
    return folder
