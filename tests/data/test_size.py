"""The size of ImageNet and beyond: what is counted are calls, descriptors and bytes, never times."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robust_train.data import indexed, table
from robust_train.data.index import ROW, LocalShard
from robust_train.data.indexed import Indexed
from robust_train.data.order import stream_order
from robust_train.data.shards import Shards
from robust_train.data.streams import FarShard, Streams
from robust_train.data.table import Table, open_table
from robust_train.data.write import sample, write_shard
from robust_train.disk import digest

MANY = 100_000
EACH = 10_000  # samples a shard of the largest: 1e9 in all


def tables(home: Path, shards: int, each: int, tar: Path | None = None) -> Table:
    """A table of `shards` shards of `each` samples; written down, not found: all lie in one tar."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.fsencode(tar or home / "one.tar")
    kind = np.dtype([("name", "S16"), ("tar", f"S{len(path)}"), ("sha256", "S64"), ("end", "i8")])
    said = np.zeros(shards, kind)
    said["name"], said["tar"], said["sha256"] = np.char.mod(b"s-%06d.tar", np.arange(shards)), path, b"0" * 64
    said["end"] = np.arange(1, shards + 1) * each
    np.save(home / "t.shards.npy", said)
    rows = np.lib.format.open_memmap(home / "t.rows.npy", "w+", [*ROW.descr[:3], ("key", "S9")], (shards * each,))
    rows["size"], rows["key"] = 1, np.char.mod(b"%09d", np.arange(shards * each))
    return Table(str(home / "t"))


class Counted:
    """An array that counts how often and how much of it is read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.reads, self.dtype = array, 0, array.dtype

    def __getitem__(self, at):
        self.reads += 1
        assert not isinstance(at, str), "a whole column"
        return self.array[at]

    def __len__(self) -> int:
        return len(self.array)


def test_a_samples_look_up_reads_one_row_of_the_table_whatever_the_number_of_shards(tmp_path, monkeypatch):
    (tmp_path / "one.tar").write_bytes(b"x")
    seen = {}
    for shards in (10, MANY):
        found = tables(tmp_path / str(shards), shards, 2, tmp_path / "one.tar")
        source = Indexed(found)
        assert len(source) == 2 * shards
        assert found.ends.flags.c_contiguous, "a search of a column in rows would copy it"
        rows, heads = Counted(found.rows), Counted(found.shards)
        found.__dict__.update(rows=rows, shards=heads)
        for number in range(0, 2 * shards, 2 * shards // 20):
            record = source.record(number)
            assert (record.shard, record.number, record.key) == (*divmod(number, 2), f"{number:09d}")
        seen[shards] = (rows.reads, heads.reads)
    assert seen[10] == seen[MANY] == (20, 20)


def test_an_index_travels_as_a_path_and_two_files_are_mapped(tmp_path):
    found = tables(tmp_path, MANY, 1)
    source = Indexed(found)
    _ = found.rows, found.shards, found.ends
    assert len(pickle.dumps(source)) < 1000 + len(str(tmp_path))
    again = pickle.loads(pickle.dumps(source))
    before = len(os.listdir("/proc/self/fd"))
    again.table.place(MANY // 2)
    assert len(again) == MANY
    assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_opening_looks_at_each_shard_once_and_makes_the_table_once(tmp_path, monkeypatch):
    """Calls grow as the shards do: nothing asks about a shard for another's sake."""
    calls: dict[str, int] = {}

    def opened(url: str, folder: Path) -> LocalShard:
        calls["open"] = calls.get("open", 0) + 1
        return LocalShard(url, f"{url}", str(tmp_path / "rows.npy"), 1, "0" * 64)

    def told(url: str, *more: object) -> str:
        calls["identity"] = calls.get("identity", 0) + 1
        return digest(url)[:16]

    np.save(tmp_path / "rows.npy", np.array([(0, 1, 0, b"k")], ROW))
    monkeypatch.setattr(table, "open_shard", opened)
    monkeypatch.setattr(table, "identity", told)
    urls = [f"s-{i:06d}.tar" for i in range(300)]
    one = open_table(urls, tmp_path / "cache")
    assert calls == {"open": 300, "identity": 300}
    again = open_table(urls, tmp_path / "cache")
    assert calls == {"open": 300, "identity": 600}
    assert again == one
    assert one.name(299) == "s-000299.tar"
    assert one.ends.tolist() == list(range(1, 301))
    assert open_table(urls[::-1], tmp_path / "cache") != one, "another order is another data set"


def test_a_sample_that_lacks_what_others_carry_lacks_it_in_the_table(tmp_path):
    """Shards of unlike columns: their rows are those that each had."""
    wide = [*ROW.descr[:3], ("key", "S3"), ("resp.offset", "i8"), ("resp.size", "i8")]
    np.save(tmp_path / "a.npy", np.array([(5, 6, 1, b"abc", 7, 8)], wide))
    np.save(tmp_path / "b.npy", np.array([(1, 2, 3, b"d")], ROW))
    shards = [LocalShard(f"{n}.tar", f"{n}.tar", str(tmp_path / f"{n}.npy"), 1, "0" * 64) for n in "ab"]
    table._write(tmp_path / "t", shards)
    assert Table(str(tmp_path / "t")).rows.tolist() == [(5, 6, 1, b"abc", 7, 8), (1, 2, 3, b"d", 0, -1)]


def test_an_epoch_of_a_thousand_million_samples_in_a_hundred_thousand_shards_is_planned_by_the_shards():
    """Bytes: what a stream holds of its order is two numbers a shard of its own."""
    order = stream_order(np.full(MANY, EACH), 8, seed=0, epoch=3, stream=5)
    assert len(order) == MANY * EACH // 8
    assert order.firsts.nbytes + order.ends.nbytes <= 16 * (MANY // 8 + 2)
    middle = len(order) // 2
    assert order[middle : middle + 3].tolist() == [next(order.stretches(middle + i))[0] for i in range(3)]
    streams = Streams(tuple(FarShard(f"{i}", f"{i}", EACH, "") for i in range(MANY)), 8, 1024)
    assert len(streams) == MANY * EACH


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards`: 1,200 of one image each, of class number mod 10; `cache`: theirs."""
    home = tmp_path_factory.mktemp("many")
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(stream, "png")
    (home / "shards").mkdir()
    for number in range(1200):
        write_shard(
            home / "shards" / f"t-{number:04d}.tar", [sample(f"k{number}", "png", stream.getvalue(), number % 10)]
        )
    return home


TRAIN_AND_JUDGE = """
    import resource, sys
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    from itertools import islice
    from robust_train.data.shards import Shards
    from robust_train.evaluate.robustness import Robustness
    from robust_train.evaluate.work import evaluate
    from robust_train.nouns import Place
    from robust_train.threats.linf import Linf
    import torch

    url = sys.argv[1] + "/t-*.tar"
    data = Shards(url, 10, 8, url, cache=sys.argv[2], workers=int(sys.argv[3]))
    data.prepare(); data.check()
    met = [int(s) for batch in islice(data.batches(Place(), 100, 0), 12) for s in batch.sample]
    assert len(set(met)) == 1200, len(set(met))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    evaluator = Robustness((Linf(0.01),), steps=1, restarts=1, curve=0, checks=0, chunk=400)
    report = evaluator.report(evaluate(evaluator, {"net": network}, data))
    assert report.images == 1200
    print("judged", report.images)
"""


@pytest.mark.slow
@pytest.mark.cluster  # starts processes
@pytest.mark.parametrize("workers", [0, 2])
def test_1200_shards_are_trained_on_and_judged_with_1024_descriptors(home: Path, tmp_path: Path, workers: int) -> None:
    program = tmp_path / "program.py"
    program.write_text("if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(TRAIN_AND_JUDGE), "    "))
    words = [sys.executable, str(program), str(home / "shards"), str(home / "cache"), str(workers)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "judged 1200" in done.stdout


@pytest.mark.slow
def test_a_walk_over_1200_shards_holds_few_descriptors_open(home: Path) -> None:
    """The same in this process, without a network: every sample is read, in an order that jumps from shard to shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    url = str(home / "shards" / "t-*.tar")
    data = Shards(url, 10, 8, url, cache=str(home / "cache"))
    before = len(os.listdir("/proc/self/fd"))
    indexed._file.cache_clear()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        data.prepare()
        source = data._train
        for number in range(0, 1200 * 7, 7):
            assert source.record(number % 1200).image is not None
        assert len(os.listdir("/proc/self/fd")) - before <= indexed.OPEN + 8
        assert len(replace(data).checksums()) == 1200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        indexed._file.cache_clear()
