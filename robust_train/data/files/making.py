"""From a source of images to shards with a manifest: by any number of processes the same bytes; what is there stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from robust_train.data.decode import Undecodable
from robust_train.data.index import agrees
from robust_train.data.manifest import Entry, entries, read_manifest, split_of
from robust_train.data.names import ids_of
from robust_train.data.order import permutation
from robust_train.data.sources import INTERPOLATION, JPEG_QUALITY, Source
from robust_train.data.write import Sample, write_shard
from robust_train.disk import digest, write_json
from robust_train.keyed import Key
from robust_train.read.errors import DataError


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
    if source.resize is not None:  # what a report says of the pixels
        plan |= {"interpolation": INTERPOLATION, "quality": JPEG_QUALITY}
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
        with self.path.open("ab") as file:  # not put on the disk: a line that a power cut takes is one shard made again
            file.write(json.dumps([asdict(entry), bad]).encode() + b"\n")

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
