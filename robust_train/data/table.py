"""The index of a data set as one table: where every sample of all its shards lies, mapped once by every process.

    CACHE/table-IDENTITY.rows.npy      offset, size, label, key of each sample; offset and size of each KEY.NAME.npy
    CACHE/table-IDENTITY.shards.npy    name, tar, sha256 of each shard, and how many samples lie up to its end

IDENTITY is of the shards' addresses, sizes and times of change, in their order. Two files are mapped however many
shards there are, and a sample is found by one binary search.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from robust_train import web
from robust_train.data.index import ROW, LocalShard, identity, open_shard, where
from robust_train.disk import alone, digest, write_whole
from robust_train.read.errors import DataError

ASKED = 16  # addresses that are asked for at once
BLOCK = 1 << 20  # rows that are looked at together
WIDEST = 4096  # bytes of a path, as Linux has it


@dataclass(frozen=True)
class Table:
    """Samples by number, through the shards in their order. A value of one path: what it maps does not travel."""

    stem: str  # of its two files; "": no shards

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> Any:
        return Table, (self.stem,)

    @cached_property
    def rows(self) -> np.ndarray:
        """A row a sample, in order."""
        return _mapped(f"{self.stem}.rows.npy") if self.stem else np.empty(0, ROW)

    @cached_property
    def shards(self) -> np.ndarray:
        """A row a shard: name, tar, sha256 (of the shard as the run names it), end."""
        return _mapped(f"{self.stem}.shards.npy") if self.stem else np.empty(0, shard_row(1, 1))

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [shards] the samples up to each shard's end: a search needs them side by side."""
        return np.ascontiguousarray(self.shards["end"])

    def place(self, sample: int) -> tuple[int, int]:
        """(shard, number in it) of a sample."""
        shard = int(self.ends.searchsorted(sample, side="right"))
        return shard, sample - self.start(shard)

    def start(self, shard: int) -> int:
        """The samples before a shard."""
        return int(self.ends[shard - 1]) if shard else 0

    def size(self, shard: int) -> int:
        """The samples of a shard."""
        return int(self.ends[shard]) - self.start(shard)

    def name(self, shard: int) -> str:
        """As messages call it."""
        return os.fsdecode(bytes(self.shards[shard]["name"]))

    def tar(self, shard: int) -> str:
        """The plain tar on this machine."""
        return os.fsdecode(bytes(self.shards[shard]["tar"]))

    def checksums(self) -> list[str]:
        """sha256 of each shard."""
        return [sha256.decode() for sha256 in self.shards["sha256"].tolist()]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first, rows) of some consecutive samples after another."""
        for first in range(0, len(self), BLOCK):
            yield first, self.rows[first : first + BLOCK]


def open_table(urls: Sequence[str], folder: Path) -> Table:
    """The table of some shards, made unless it has been: those it lacks are fetched, unpacked and indexed, one by one.

    Costs a look at each shard's size and time of change, and nothing more where the table is there. Any number of
    processes may ask for it at once. Raises DataError as `open_shard` does.
    """
    if not urls:
        return Table("")
    with ThreadPoolExecutor(ASKED) as asking:  # servers are asked side by side, once a process
        list(asking.map(web.stamp, filter(web.is_web, urls)))
    told = digest("\n".join(identity(url, folder) for url in urls))[:16]
    table = Table(str(folder / f"table-{told}"))
    if not _whole(table, urls):
        with alone(folder / f"table-{told}.lock"):
            if not _whole(table, urls):
                _write(Path(table.stem), [open_shard(url, folder) for url in urls])
    return table


def _whole(table: Table, urls: Sequence[str]) -> bool:
    """Whether a table is there, and so is what was fetched or unpacked for it."""
    try:
        tars = _mapped(f"{table.stem}.shards.npy")["tar"]
    except FileNotFoundError:
        return False
    own = np.flatnonzero(np.char.startswith(tars, os.fsencode(os.path.dirname(table.stem) + "/")))
    return len(tars) == len(urls) and all(os.path.exists(os.fsdecode(bytes(tars[number]))) for number in own)


def _write(stem: Path, shards: Sequence[LocalShard]) -> None:
    """One shard's rows are in memory at a time."""
    names: dict[str, None] = {}
    longest = 1
    for shard in shards:
        kind = np.load(shard.rows).dtype
        longest = max(longest, kind["key"].itemsize)
        names |= dict.fromkeys(name for name in kind.names or () if name not in ("offset", "size", "label", "key"))
    row = np.dtype([*ROW.descr[:3], ("key", f"S{longest}"), *((name, "i8") for name in sorted(names))])
    ends = np.cumsum([shard.samples for shard in shards])

    def rows(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_2_0(file, _header(row, int(ends[-1])))
        for shard in shards:
            file.write(_widened(np.load(shard.rows), row).tobytes())

    write_whole(stem.with_name(f"{stem.name}.rows.npy"), rows)
    texts = [(os.fsencode(shard.name), os.fsencode(shard.tar), shard.sha256) for shard in shards]
    if any(len(tar) > WIDEST for _, tar, _ in texts):
        raise DataError(f"a shard's path is longer than {WIDEST:,} bytes: move the shards")
    kind = shard_row(*(max(len(one[column]) for one in texts) for column in (0, 1)))
    said = np.array([(*text, end) for text, end in zip(texts, ends.tolist(), strict=True)], kind)
    write_whole(stem.with_name(f"{stem.name}.shards.npy"), lambda file: np.save(file, said))  # last: it is whole now


def _widened(found: np.ndarray, row: np.dtype[Any]) -> np.ndarray:
    """Rows of one shard as rows of the table; what none of its samples carries is absent."""
    made = np.zeros(len(found), row)
    for name in row.names or ():
        made[name] = found[name] if name in (found.dtype.names or ()) else (-1 if name.endswith(SIZE) else 0)
    return made


SIZE = where("")[1]  # how the column that says an entry's bytes ends


def shard_row(name: int, tar: int) -> np.dtype[Any]:
    """A row a shard, whose name and tar are so many bytes at most."""
    return np.dtype([("name", f"S{name}"), ("tar", f"S{tar}"), ("sha256", "S64"), ("end", "i8")])


def _header(row: np.dtype[Any], count: int) -> dict[str, Any]:
    return {"descr": np.lib.format.dtype_to_descr(row), "fortran_order": False, "shape": (count,)}


def _mapped(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)
