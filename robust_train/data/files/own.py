"""Images as people have them in place of shards: a folder of class folders, or a table of files and labels.

They become shards in the cache, once, the same bytes as tools.make_shards would write: so a run on a folder has the
numbers of a run on its shards, to the bit, for any number of ranks and after any fault. A folder whose names, sizes or
times of change are others gets shards of its own. For sets so large that a copy is too much, make_shards is the way.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from robust_train.data.files.folders import class_folders, hidden
from robust_train.data.files.making import make
from robust_train.data.manifest import SUFFIXES, locate, read_manifest, remote
from robust_train.data.names import FILE, ids_of, names_beside
from robust_train.data.sources import ClassFolders, ListedFiles
from robust_train.disk import alone, digest
from robust_train.read.errors import DataError

TABLES = (".csv", ".tsv")
LAYOUT = 1  # of what is made: that of another is made anew
PER_SHARD = 1000


def owned(url: str) -> bool:
    """Whether an address is a folder of class folders or a table of files, and no shards."""
    if remote(url):
        return False
    path = Path(url).expanduser()
    if path.is_dir():
        inside = list(os.scandir(path))
        shards = any(entry.name.endswith(SUFFIXES) for entry in inside)
        return not shards and any(entry.is_dir() and not hidden(entry.name) for entry in inside)
    return path.suffix.lower() in TABLES


def addresses(
    urls: str | Iterable[str], cache: Path, known: Sequence[str], classes: int, missing: int, processes: int
) -> tuple[str, ...]:
    """Of some addresses the shards, one a shard, in order; those of folders and tables are made where they are not.

    known: the names of the classes in the order of labels, where something beside the images says them; else each must
    hold all `classes` of them. missing: how many of its images may be unreadable. Raises DataError as `locate` does,
    for other classes, for too little room, and for more unreadable images.
    """
    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else urls:
        found += made(url, cache, known, classes, missing, processes) if owned(url) else locate(url)
    return tuple(found) if found else locate(urls)


def classes_of(urls: str | Iterable[str]) -> tuple[str, ...]:
    """What the class folders of images or shards are called, in the order of labels; empty where nothing says it.

    By classes.json in or beside them, else by the folders of the first, or the names in its table. No image is read.
    Nothing is said of images that are not there.
    """
    first = urls if isinstance(urls, str) else next(iter(urls), "")
    path = Path(first).expanduser()
    if not owned(first):
        try:
            said = names_beside(locate(urls))
        except DataError:
            return ()
        return () if said is None else ids_of(said)
    if not path.exists():
        return ()
    there = (path if path.is_dir() else path.parent) / FILE
    if there.is_file():
        return ids_of(there)
    if path.is_dir():
        return tuple(class_folders(path))
    table = ListedFiles(str(path), "")
    return () if table.numbered else tuple(table.classes)


def labels_for(images: str | Iterable[str], train: str | Iterable[str]) -> tuple[str, ...]:
    """The names of the classes that give `images` the labels which `train` has; empty where they go by their own.

    Raises DataError where both say names, and the labels of the one would be others than those of the other.
    """
    first = images if isinstance(images, str) else next(iter(images), "")
    theirs = classes_of(train) if owned(first) else ()
    if not theirs:
        return ()
    own = classes_of(images)
    shared = set(own) & set(theirs)
    if len(shared) == len(own):
        return theirs
    trained = train if isinstance(train, str) else next(iter(train), "")
    if shared or (own and owned(trained)):  # else shards whose classes.json says them in other words
        strange = next(name for name in own if name not in shared)
        raise DataError(
            f"{first} holds class {strange!r}, which is none of the {len(theirs):,} that {trained} has "
            f"({', '.join(theirs[:3])}, ...): labels would be others. Name the same classes in both."
        )
    return ()


def made(url: str, cache: Path, known: Sequence[str], classes: int, missing: int, processes: int) -> tuple[str, ...]:
    """The shards of a folder or a table, made unless they have been. Any number of processes may ask for them."""
    path = Path(url).expanduser().absolute()
    split = re.sub(r"\W+", "-", path.stem if path.suffix.lower() in TABLES else path.name).strip("-") or "images"
    source: ClassFolders | ListedFiles = ClassFolders(str(path), split, None, tuple(known))
    if not path.is_dir():
        source = ListedFiles(str(path), split, None, tuple(known))
        if source.numbered:  # the labels are said: no class need be there
            source = replace(source, names=tuple(map(str, range(classes))))
    if len(source.classes) != classes:
        raise DataError(
            f"{path} holds images of {len(source.classes):,} classes, but data.classes={classes}. Say "
            f"data.classes={len(source.classes)}, or write {FILE}, the names of all classes in the order of their "
            f"labels, beside the images: {(path if path.is_dir() else path.parent) / FILE}"
        )
    stats = [source.path(number).stat() for number in range(len(source))]
    facts = zip(source.listing(), stats, strict=True)
    lines = [f"{name} {fact.st_size} {fact.st_mtime_ns}" for name, fact in facts]
    told = digest("\n".join([str(LAYOUT), split, *source.classes, "", *lines]))[:16]
    out = cache / f"made-{split}-{told}"
    with alone(cache / f"made-{split}-{told}.lock"):
        said = read_manifest(out)["splits"].get(split, {})
        if not said.get("complete"):
            _room(path, cache, sum(fact.st_size for fact in stats))
            print(f"{path}: {len(source):,} images become shards in {out}, once", file=sys.stderr)
            for line in source.left_out():
                print(f"left out, {line}", file=sys.stderr)
            make(source, out, PER_SHARD, processes)
            said = read_manifest(out)["splits"][split]
    broken = said["unreadable"]
    if len(broken) > missing:
        raise DataError(
            f"{path}: {len(broken):,} of {len(source):,} images cannot be read, {broken[0]} first. Remove them, or "
            f"allow them with data.missing={len(broken)} (now {missing})."
        )
    return tuple(str(out / one["file"]) for one in said["shards"])


def _room(path: Path, cache: Path, size: int) -> None:
    free = shutil.disk_usage(cache).free
    if free < 1.1 * size:
        raise DataError(
            f"{path} holds {size / 1e9:,.1f} GB of images, and {cache}, where they would become shards, has "
            f"{free / 1e9:,.1f} GB free. Name another data.cache, or make shards where there is room: "
            f"python -m tools.make_shards {path} FOLDER."
        )
