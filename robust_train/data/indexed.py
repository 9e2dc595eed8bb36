"""Reading by offset: any sample of local shards at any time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from robust_train.data.index import where
from robust_train.data.samples import NO_LABEL, NOT_A_LABEL, Record
from robust_train.data.table import Table

OPEN = 256  # tars that a process holds open: below the 1,024 files that it may commonly have


@dataclass(frozen=True)
class Indexed:
    """Indexed shards as one list of samples; sample numbers count through the shards in their order.

    extra: names of what each sample carries beside. labelled: where not, every label is 0.
    """

    table: Table
    extra: tuple[str, ...] = ()
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.table)

    def name(self, shard: int) -> str:
        """What a shard is called."""
        return self.table.name(shard)

    def checksums(self) -> list[str]:
        """sha256 of each shard."""
        return self.table.checksums()

    def fingerprint(self) -> str:
        """Of the shards' checksums and of every sample's key, label, offset and size."""
        whole = hashlib.sha256("".join(self.checksums()).encode() + self.table.ends.tobytes())
        whole.update(repr(self.table.rows.dtype.descr).encode())
        for _, rows in self.table.blocks():
            whole.update(rows.tobytes())
        return whole.hexdigest()

    def digests(self) -> list[str]:
        """Of each shard, the sha256 of its samples' keys, labels, offsets and sizes."""
        table, found = self.table, []
        for shard in range(len(table.shards)):
            rows = table.rows[table.start(shard) : table.start(shard) + table.size(shard)]
            whole = hashlib.sha256(b"\0".join(rows["key"].tolist()))  # a column is as wide as the whole set's longest
            for name in ("offset", "size", "label"):
                whole.update(rows[name].tobytes())
            found.append(whole.hexdigest())
        return found

    def record(self, sample: int) -> Record:
        """A sample by its number: one search, whatever the number of shards, and one read of its bytes."""
        return self._record(*self.table.place(sample), sample)

    def numbered(self, shard: int, number: int) -> Record:
        """A sample by its shard and its number in it."""
        return self._record(shard, number, self.table.start(shard) + number)

    def _record(self, shard: int, number: int, sample: int) -> Record:
        row, tar = self.table.rows[sample], self.table.tar(shard)
        image, *extra = (_bytes(tar, row, *pair) if pair[1] in self._held else None for pair in self._columns)
        label = int(row["label"]) if self.labelled else 0
        return Record(shard, number, row["key"].decode(), image, label, dict(zip(self.extra, extra, strict=True)))

    @cached_property
    def _columns(self) -> list[tuple[str, str]]:
        return [("offset", "size"), *(where(name.lower()) for name in self.extra)]

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset(self.table.rows.dtype.names or ())

    def keys(self) -> Iterator[str]:
        """The samples' keys, in order; images are not read."""
        for _, rows in self.table.blocks():
            yield from (key.decode() for key in rows["key"].tolist())

    def after(self, record: Record) -> Iterator[Record]:
        """The other samples of a record's shard, from the next one on, round to the one before it."""
        samples = self.table.size(record.shard)
        for step in range(1, samples):
            yield self.numbered(record.shard, (record.number + step) % samples)

    @cached_property
    def faults(self) -> tuple[tuple[int, int, str], ...]:
        """(number, shard, "KEY WHAT") of the samples of which something is absent; images are not decoded."""
        found = []
        for first, rows in self.table.blocks():
            broken = rows["size"] < 0
            if self.labelled:
                broken = broken | (rows["label"] == NO_LABEL) | (rows["label"] == NOT_A_LABEL)
            for _, size in self._columns[1:]:
                broken = broken | (rows[size] < 0 if size in self._held else True)
            for row in np.flatnonzero(broken).tolist():
                record = self.record(first + row)
                found.append((first + row, record.shard, f"{record.key} {record.fault}"))
        return tuple(found)

    def strangers(self, classes: int) -> Iterator[Record]:
        """Samples whose label is not in 0, ..., classes - 1."""
        for first, rows in self.table.blocks() if self.labelled else ():
            labels = rows["label"]
            absent = (labels == NO_LABEL) | (labels == NOT_A_LABEL)
            for row in np.flatnonzero(~absent & ((labels < 0) | (labels >= classes))).tolist():
                yield self.record(first + row)


class _File:
    """An open file, closed when nothing refers to it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _bytes(tar: str, row: np.void, offset: str, size: str) -> bytes | None:
    return None if row[size] < 0 else os.pread(_file(tar).number, int(row[size]), int(row[offset]))


@lru_cache(maxsize=OPEN)
def _file(path: str) -> _File:
    return _File(path)
