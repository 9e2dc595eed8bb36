"""Reading by offset: any sample of local shards at any time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from robust_train.data.index import LocalShard, rows_of, where
from robust_train.data.samples import NO_LABEL, NOT_A_LABEL, Record


@dataclass(frozen=True)
class Indexed:
    """Indexed shards as one list of samples; sample numbers count through the shards in their order.

    extra: names of what each sample carries beside. labelled: where not, every label is 0.
    """

    shards: tuple[LocalShard, ...]
    extra: tuple[str, ...] = ()
    labelled: bool = True

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def fingerprint(self) -> str:
        """Of the shards' checksums and of every sample's key, label, offset and size."""
        whole = hashlib.sha256()
        for shard in self.shards:
            whole.update(shard.sha256.encode() + np.ascontiguousarray(rows_of(shard.rows)).tobytes())
        return whole.hexdigest()

    def record(self, sample: int) -> Record:
        """A sample by its number: one read of its bytes."""
        shard = int(np.searchsorted(_ends(self.shards), sample, side="right"))
        return self.numbered(shard, sample - int(_ends(self.shards)[shard]) + self.shards[shard].samples)

    def numbered(self, shard: int, number: int) -> Record:
        """A sample by its shard and its number in it."""
        rows, tar = rows_of(self.shards[shard].rows), self.shards[shard].tar
        row, columns = rows[number], [("offset", "size"), *(where(name.lower()) for name in self.extra)]
        image, *extra = (_bytes(tar, row, *pair) if pair[1] in (rows.dtype.names or ()) else None for pair in columns)
        label = int(row["label"]) if self.labelled else 0
        return Record(shard, number, row["key"].decode(), image, label, dict(zip(self.extra, extra, strict=True)))

    def keys(self) -> Iterator[str]:
        """The samples' keys, in order; images are not read."""
        for shard in self.shards:
            yield from (key.decode() for key in rows_of(shard.rows)["key"].tolist())

    def after(self, record: Record) -> Iterator[Record]:
        """The other samples of a record's shard, from the next one on, round to the one before it."""
        samples = self.shards[record.shard].samples
        for step in range(1, samples):
            yield self.numbered(record.shard, (record.number + step) % samples)

    def faults(self) -> Iterator[tuple[int, Record]]:
        """Samples of which something is absent, with their numbers; images are not decoded."""
        for shard, (said, end) in enumerate(zip(self.shards, _ends(self.shards), strict=True)):
            rows = rows_of(said.rows)
            broken = rows["size"] < 0
            if self.labelled:
                broken = broken | (rows["label"] == NO_LABEL) | (rows["label"] == NOT_A_LABEL)
            for _, size in (where(name.lower()) for name in self.extra):
                broken = broken | (rows[size] < 0 if size in (rows.dtype.names or ()) else True)
            for number in np.flatnonzero(broken):
                yield int(end) - said.samples + int(number), self.numbered(shard, int(number))

    def strangers(self, classes: int) -> Iterator[Record]:
        """Samples whose label is not in 0, ..., classes - 1."""
        for shard, said in enumerate(self.shards if self.labelled else ()):
            labels = rows_of(said.rows)["label"]
            absent = (labels == NO_LABEL) | (labels == NOT_A_LABEL)
            for number in np.flatnonzero(~absent & ((labels < 0) | (labels >= classes))):
                yield self.numbered(shard, int(number))


class _File:
    """An open file, closed when nothing refers to it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


def _bytes(tar: str, row: np.void, offset: str, size: str) -> bytes | None:
    return None if row[size] < 0 else os.pread(_file(tar).number, int(row[size]), int(row[offset]))


@lru_cache(maxsize=256)  # below the 1,024 files that a process may commonly hold open
def _file(path: str) -> _File:
    return _File(path)


@lru_cache(maxsize=8)
def _ends(shards: tuple[LocalShard, ...]) -> np.ndarray:
    """For each shard the number of samples up to its end."""
    return np.cumsum([shard.samples for shard in shards])
