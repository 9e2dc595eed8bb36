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
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

from robust_train.data.files.flat import FlatValidation
from robust_train.data.files.making import make
from robust_train.data.index import index, unpacked
from robust_train.data.manifest import SUFFIXES, Entry, entries, packed, read_manifest, split_of
from robust_train.data.names import ids_of
from robust_train.data.sources import ClassFolders, DigitsSource, Source, Torchvision
from robust_train.data.write import verify
from robust_train.disk import checksum, write_json
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
    for name, said in splits.items():  # shards that make_shards made: what it did to their pixels stays said
        before = manifest.get("splits", {}).get(name, {})
        if "plan" in before and set(entries({"splits": {name: said}})) <= set(entries({"splits": {name: before}})):
            splits[name] = {**before, **said}
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
