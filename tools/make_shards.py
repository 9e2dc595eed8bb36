"""Write WebDataset shards with a manifest, or a manifest for shards made elsewhere.

    python -m tools.make_shards /data/imagenet/train shards --split train --processes 8
    python -m tools.make_shards /data/imagenet/val shards --split validation
    python -m tools.make_shards /data/val-flat shards --split validation --format imagenet-val --ground-truth FILE
    python -m tools.make_shards /data/torchvision shards --format torchvision:CIFAR10 --split train
    python -m tools.make_shards digits shards --split validation
    python -m tools.make_shards shards --index

Samples are shuffled by a fixed seed, so each shard is a fair draw. OUT gets SPLIT-000000.tar, ..., classes.json and
manifest.json (counts and checksums). The same command goes on where an interrupted one stopped; nothing is overwritten.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from robust_train.data.decode import Undecodable
from robust_train.data.index import agrees, index, unpacked
from robust_train.data.manifest import SUFFIXES, Entry, entries, packed, read_manifest, split_of
from robust_train.data.names import ids_of
from robust_train.data.order import permutation
from robust_train.data.sources import ClassFolders, DigitsSource, FlatValidation, Source, Torchvision
from robust_train.data.write import Sample, verify, write_shard
from robust_train.disk import checksum, digest, write_json
from robust_train.keyed import Key
from robust_train.read.errors import ConfigError, DataError, main_guard
from robust_train.read.paths import Parser


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        "python -m tools.make_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", help="folder of the images; the word digits for scikit-learn's; with --index, the folder of shards")
    add("out", nargs="?", help="folder for the shards, made if need be; splits of one data set share it")
    add("--split", default="train", help="name of the split, the first part of its shards' names (default: train)")
    add(
        "--format",
        default="folder",
        help="folder: one folder a class (default); imagenet-val: all images in one folder, classes in --ground-truth; "
        "torchvision:NAME: a data set of torchvision (CIFAR10, CIFAR100, SVHN, ...) below SOURCE; digits",
    )
    add("--ground-truth", metavar="FILE", default="", help="imagenet-val: the classes of the images")
    add(
        "--classes", metavar="FILE", help="imagenet-val: class names in the order of labels (default: OUT/classes.json)"
    )
    add("--download", action="store_true", help="torchvision: fetch the data set if it is not there")
    add("--size-per-shard", type=int, default=1000, metavar="N", help="images a shard (default: 1000)")
    add("--resize", type=int, metavar="PIXELS", help="store images with a longer short side at this one, as JPEG")
    add(
        "--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at work (default: all cores)"
    )
    add("--index", action="store_true", help="write manifest.json for the shards that lie in SOURCE")
    add("--verify", action="store_true", help="read all shards in SOURCE and compare them with their manifest")
    chosen = parser.parse_args(words)
    if chosen.out is None and not (chosen.index or chosen.verify):
        parser.error("OUT is missing: name the folder for the shards")
    for name in ("size_per_shard", "processes"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return chosen


def source_of(chosen: argparse.Namespace) -> Source:
    """What the command line names as the images' source."""
    kind, _, name = chosen.format.partition(":")
    if chosen.source == "digits" or kind == "digits":
        return DigitsSource("digits", chosen.split)
    if not Path(chosen.source).is_dir():
        raise DataError(f"{chosen.source} is no folder: name the folder of the images")
    if kind == "folder":
        return ClassFolders(chosen.source, chosen.split, chosen.resize)
    if kind == "imagenet-val":
        there = Path(chosen.classes) if chosen.classes else Path(chosen.out) / "classes.json"
        names = ids_of(there) if there.exists() or chosen.classes else ()
        return FlatValidation(chosen.source, chosen.split, chosen.resize, chosen.ground_truth, names)
    if kind == "torchvision" and name:
        return Torchvision(chosen.source, chosen.split, chosen.resize, name, chosen.download)
    raise ConfigError(f"--format {chosen.format} is none of folder, imagenet-val, torchvision:NAME, digits")


def make(source: Source, out: Path, per_shard: int, processes: int) -> tuple[int, list[str]]:
    """Write the shards of a split that are not there yet. (images in all, names of the unreadable ones)."""
    count = len(source)
    if not count:
        raise DataError(
            "; ".join([f"{source.place} holds no images", *source.left_out()]) + ". Name the folder that does."
        )
    plan = {
        "source": type(source).__name__,
        "images": count,
        "listing": digest("\n".join(source.listing())),
        "resize": source.resize,
        "size_per_shard": per_shard,
    }
    manifest, journal = read_manifest(out), Journal(out / f".{source.split}.made.jsonl")
    if source.split not in manifest["splits"]:
        journal.end()  # of shards that were taken away
    done, unreadable = begun(manifest, source, out, plan, journal)
    order = permutation(count, Key(0).of("make_shards"))
    names = [f"{source.split}-{i:06d}.tar" for i in range(-(-count // per_shard))]
    jobs = [
        (out / name, order[i * per_shard : (i + 1) * per_shard].tolist())
        for i, name in enumerate(names)
        if name not in done
    ]
    strange = [path.name for path, _ in jobs if path.exists()]
    if strange and source.split not in manifest["splits"]:
        raise DataError(
            f"{out / strange[0]} is there already and no manifest speaks of it. Name another folder, or remove it."
        )

    def note() -> None:
        shards = [done[name] for name in names if name in done]
        said = {"plan": plan, "complete": len(shards) == len(names), "unreadable": sorted(unreadable)}
        manifest = read_manifest(out)  # anew: another split may be written at the same time
        manifest["splits"][source.split] = split_of(shards) | said
        write_json(out / "manifest.json", manifest)

    write_json(out / "classes.json", source.classes)
    note()
    try:
        for entry, bad in written(source, jobs, processes):
            done[entry.file] = entry
            unreadable |= set(bad)
            journal.add(entry, bad)
    finally:
        note()
    journal.end()
    return sum(entry.samples for entry in done.values()), sorted(unreadable)


@dataclass(frozen=True)
class Journal:
    """What has been made since the manifest was written, a line a shard: to write all of it for each shard would cost
    the square of their number. It lies beside the manifest until that says the same."""

    path: Path

    def add(self, entry: Entry, bad: list[str]) -> None:
        """A shard that is there, and the images that were left out of it."""
        with self.path.open("ab") as file:
            file.write(json.dumps([asdict(entry), bad]).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[tuple[Entry, list[str]]]:
        """What a killed command had made; a line that the kill cut off says nothing."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for line in lines:
            with suppress(ValueError, TypeError):
                entry, bad = json.loads(line)
                yield Entry(**entry), bad

    def end(self) -> None:
        """The manifest says it all."""
        self.path.unlink(missing_ok=True)


def begun(
    manifest: dict[str, Any], source: Source, out: Path, plan: dict[str, Any], journal: Journal
) -> tuple[dict[str, Entry], set[str]]:
    """Shards of the split that are finished and as was noted, and images left out of them.

    DataError where they are of another making.
    """
    classes = out / "classes.json"
    if classes.exists() and ids_of(classes) != tuple(source.classes):
        raise DataError(
            f"{classes} lists other classes than {source.place}: a data set's splits share their labels. Name another "
            "folder, or correct the source."
        )
    split = manifest["splits"].get(source.split)
    if split is None:
        return {}, set()
    if split.get("plan") != plan:
        raise DataError(
            f"{out} holds a split {source.split!r} made otherwise ({split.get('plan', 'elsewhere')}, now {plan}). "
            "Nothing is overwritten: name another --split or folder, or remove those shards and their manifest."
        )
    found, unreadable = {}, set(split.get("unreadable", []))
    noted = {entry.file: entry for entry in entries(manifest, source.split)}
    for entry, bad in journal.read():
        noted[entry.file] = entry
        unreadable |= set(bad)
    for entry in noted.values():
        path = out / entry.file
        if agrees(entry, path):
            found[entry.file] = entry
        elif path.exists():
            raise DataError(f"{path} is not the file that was written: remove it, and the same command writes it again")
    return found, unreadable


def written(source: Source, jobs: list[tuple[Path, list[int]]], processes: int) -> Iterator[tuple[Entry, list[str]]]:
    """Shards as they are finished, with the names of images left out; with a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{source.split}: images", total=sum(len(numbers) for _, numbers in jobs))
        sizes = {path.name: len(numbers) for path, numbers in jobs}
        for entry, bad in _results(source, jobs, processes):
            bar.advance(task, sizes[entry.file])
            yield entry, bad


def _results(source: Source, jobs: list[tuple[Path, list[int]]], processes: int) -> Iterator[tuple[Entry, list[str]]]:
    if min(processes, len(jobs)) <= 1:
        yield from (shard(source, path, numbers) for path, numbers in jobs)
        return
    bare = replace(source)  # without what it has read: each process reads its own
    pool: Executor
    with ProcessPoolExecutor(min(processes, len(jobs)), get_context("forkserver"), _begin, (bare,)) as pool:
        running = [pool.submit(_work, path, numbers) for path, numbers in jobs]
        try:
            yield from (future.result() for future in as_completed(running))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def shard(source: Source, path: Path, numbers: list[int]) -> tuple[Entry, list[str]]:
    """Write one shard; unreadable images are left out and named."""
    bad: list[str] = []

    def readable() -> Iterator[Sample]:
        for number in numbers:
            try:
                yield source.sample(number)
            except Undecodable as error:
                bad.append(str(error))

    return write_shard(path, readable()), bad


_source: Source  # of a worker process


def _begin(source: Source) -> None:
    global _source
    _source = source


def _work(path: Path, numbers: list[int]) -> tuple[Entry, list[str]]:
    return shard(_source, path, numbers)


def account(path: Path) -> Entry:
    """What a manifest says of a shard made elsewhere: reads all of it. DataError where it is damaged."""
    if not packed(str(path)):
        return Entry(path.name, len(index(path, path.name)), path.stat().st_size, checksum(path))
    with tempfile.NamedTemporaryFile(suffix=".tar") as tar, open(path, "rb") as file:
        sha256 = unpacked(file, tar.file, path.name)
        tar.flush()
        return Entry(path.name, len(index(Path(tar.name), path.name)), path.stat().st_size, sha256)


def write_index(folder: Path, processes: int) -> list[Entry]:
    """Write the manifest of the shards in a folder; NAME-000000.tar, ... are the split NAME. Other entries are kept."""
    paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES)) if folder.is_dir() else []
    if not paths:
        raise DataError(f"{folder} holds no .tar or .tar.gz shard")
    if min(processes, len(paths)) > 1:
        with ProcessPoolExecutor(min(processes, len(paths)), get_context("forkserver")) as pool:
            found = list(pool.map(account, paths))
    else:
        found = [account(path) for path in paths]
    there = folder / "manifest.json"
    manifest = read_manifest(folder) if there.exists() else {}
    splits = {name: split_of(shards) for name, shards in groupby(found, lambda entry: split_name(entry.file))}
    write_json(there, manifest | {"splits": splits})
    return found


def split_name(file: str) -> str:
    """`cifar10-train-000004.tar.gz` to `cifar10-train`; a name without a number is its own split."""
    stem = file.split(".")[0]
    return re.sub(r"[-_]?\d+$", "", stem) or stem


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    chosen = arguments(words)
    if chosen.index:
        found = write_index(Path(chosen.source), chosen.processes)
        print(
            f"{chosen.source}/manifest.json: {len(found):,} shards, {sum(entry.samples for entry in found):,} samples"
        )
        return 0
    if chosen.verify:
        wrong = verify(Path(chosen.source))
        print("\n".join(wrong) if wrong else "all shards are as their manifest says")
        return 1 if wrong else 0
    source = source_of(chosen)
    images, unreadable = make(source, Path(chosen.out), chosen.size_per_shard, chosen.processes)
    for line in source.left_out():
        print(f"left out, {line}", file=sys.stderr)
    for name in unreadable:
        print(f"left out, unreadable: {name}", file=sys.stderr)
    classes = len(source.classes)
    print(
        f"{chosen.out}: {images:,} images of {classes:,} classes in split {chosen.split}; "
        f"{len(unreadable):,} unreadable ones left out.\n"
        f"In a run: data: {{use: shards, train: {chosen.out}/{chosen.split}-*.tar, classes: {classes}, size: ...}}"
    )
    return 0


if __name__ == "__main__":
    with main_guard():
        sys.exit(main())
