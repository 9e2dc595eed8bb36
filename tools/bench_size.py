"""How long the book-keeping of large data sets takes: look-ups, plans of an epoch, tables, manifests, kept verdicts.

    python -m tools.bench_size

No image is read, and what is written lies in a temporary folder: tables of 100,000 shards are made up, their rows a
sparse file. Times are the processor's; tests/data/test_size.py counts what must not grow.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from robust_train.data.index import ROW, LocalShard
from robust_train.data.indexed import Indexed
from robust_train.data.manifest import Entry, locate
from robust_train.data.order import WHOLE, epoch_order, samples_of, stream_order
from robust_train.data.table import Table, open_table, shard_row
from robust_train.disk import write_json
from robust_train.read import paths
from robust_train.sealed import Lots

MANY, EACH = 100_000, 10_000  # shards, and samples in one: 1e9 together


def synthetic(home: Path, shards: int, each: int, tar: Path) -> Table:
    """A table of `shards` shards of `each` samples of no bytes, all of them in one tar."""
    home.mkdir(parents=True, exist_ok=True)
    said = np.zeros(shards, shard_row(16, len(os.fsencode(tar))))
    said["name"], said["tar"], said["sha256"] = np.char.mod(b"s-%06d.tar", np.arange(shards)), os.fsencode(tar), b"0"
    said["end"] = np.arange(1, shards + 1) * each
    np.save(home / "t.shards.npy", said)
    np.lib.format.open_memmap(home / "t.rows.npy", "w+", ROW.descr, (shards * each,)).flush()
    return Table(str(home / "t"))


def figures(home: Path, many: int, each: int) -> Iterator[tuple[str, str]]:
    """(what, how long) of each."""
    one = home / "one.tar"
    one.write_bytes(b"")
    for shards in (10, many // 100, many):
        source = Indexed(synthetic(home / f"{shards}", shards, each, one))
        numbers = np.random.default_rng(0).integers(0, len(source), 2000).tolist()
        looked = [source.record(number) for number in numbers]  # whose pages are in memory now
        began = time.process_time()
        for number in numbers * 5:
            source.record(number)
        took = (time.process_time() - began) / 5 / len(looked)
        yield f"a sample's look-up, {shards:,} shards, {len(source):,} samples", f"{took * 1e6:.1f} us"
    n = many * each
    for size in (1_281_167, n):
        epoch_order.cache_clear()
        tracemalloc.start()
        took = timed(partial(samples_of, size // 256 // 2, size, 256, 0))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        again = timed(partial(samples_of, size // 256 // 2 + 1, size, 256, 0))
        how = "an array" if size <= WHOLE else "a bijection"
        what = f"planning an epoch of {size:,} samples, {how}: the first batch in its middle, and the next"
        yield what, f"{took * 1e3:.1f} ms, {again * 1e3:.2f} ms; {peak / 1e6:.1f} MB of numpy's"
    took = timed(lambda: stream_order(np.full(many, each), 8, 0, 0, 3))
    yield f"planning a stream of {many:,} shards, {n:,} samples", f"{took * 1e3:.1f} ms"
    yield from tables(home, many // 5)
    entries = [Entry(f"train-{i:06d}.tar", each, 10**8, "0" * 64) for i in range(many // 5)]
    yield f"noting {len(entries):,} shards as they are made, and the manifest at the end", noted(home, entries)
    lots, tensors = Lots(home / "256-00000.pieces"), {name: torch.ones(256) for name in ("right", "margin", "distance")}
    costs = [timed(partial(lots.add, f"piece {number}@a.256", tensors)) for number in range(200)]
    first, last = (f"{1e3 * float(np.median(some)):.2f}" for some in (costs[:50], costs[150:]))
    yield "keeping a piece of 256 images, of the first 50 of a chunk, and of the last of 200", f"{first} ms, {last} ms"


def tables(home: Path, many: int) -> Iterator[tuple[str, str]]:
    """Of opening shards that have been indexed: the table made from their rows, and found."""
    (home / "shards").mkdir()
    np.save(home / "rows.npy", np.zeros(1, ROW))
    for number in range(many):
        (home / "shards" / f"t-{number:06d}.tar").touch()
    from robust_train.data import table

    shard, kept = LocalShard("t", "t", str(home / "rows.npy"), 1, "0" * 64), table.open_shard
    table.open_shard = lambda url, folder: shard  # as if each had been indexed
    try:
        urls = locate(str(home / "shards"))
        yield f"making the table of {many:,} indexed shards", f"{timed(lambda: open_table(urls, home / 'cache')):.2f} s"
    finally:
        table.open_shard = kept
    yield f"opening it: {many:,} shards looked at", f"{timed(lambda: open_table(urls, home / 'cache')):.2f} s"


def noted(home: Path, entries: list[Entry]) -> str:
    """How long make_shards' book-keeping takes."""
    from robust_train.data.files.making import Journal
    from robust_train.data.manifest import split_of

    journal = Journal(home / ".train.made.jsonl")

    def note() -> None:
        for entry in entries:
            journal.add(entry, [])
        write_json(home / "manifest.json", {"splits": {"train": split_of(entries)}})
        journal.end()

    return f"{timed(note):.2f} s"


def timed(work: Callable[[], object]) -> float:
    """Seconds of the processor: what else is at work on the machine does not count, waiting for the disk neither."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Print a line a figure."""
    parser = paths.Parser(
        "python -m tools.bench_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=MANY, help="of the largest data set (%(default)s)")
    parser.add_argument("--samples", type=int, default=EACH, help="in each shard (%(default)s)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, took in figures(Path(folder), max(asked.shards, 1000), asked.samples):
            print(f"{took:>40}  {what}", flush=True)


if __name__ == "__main__":
    main()
