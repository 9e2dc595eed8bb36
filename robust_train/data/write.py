"""Writing and verifying shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

from robust_train.data.index import index
from robust_train.data.manifest import Entry, entries, read_manifest
from robust_train.disk import checksum, write_whole

Sample = dict[str, bytes | str]
"""A sample to be written: {"__key__": name, "png": bytes, "cls": bytes, ...}."""


def sample(key: str, extension: str, image: bytes, label: int) -> Sample:
    """An image file and its label under one key."""
    return {"__key__": key, extension: image, "cls": str(label).encode()}


def write_shard(path: Path, samples: Iterable[Sample]) -> Entry:
    """Write one shard (.tar, or .tar.gz), whole or not at all, and say what it holds.

    Times and owners in it are fixed, so the same samples give the same bytes, and the same checksum.
    """
    import gzip

    from webdataset import TarWriter

    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.name.endswith("gz") else None
        with TarWriter(packed or file, user="data", group="data", mtime=0, encoder=False) as tar:
            for one in samples:
                tar.write(one)
                count += 1
        if packed is not None:
            packed.close()

    write_whole(path, write)
    return Entry(path.name, count, path.stat().st_size, checksum(path))


def verify(folder: Path) -> list[str]:
    """Read every shard that a folder's manifest names; what is wrong, one line each. Costs a read of all bytes."""
    wrong: list[str] = []
    for entry in entries(read_manifest(folder)):
        path = folder / entry.file
        if not path.exists():
            wrong.append(f"{entry.file}: absent")
        elif checksum(path) != entry.sha256:
            wrong.append(f"{entry.file}: its bytes are not those that the manifest speaks of")
        elif path.name.endswith(".tar") and len(index(path, entry.file)) != entry.samples:
            wrong.append(f"{entry.file}: not {entry.samples:,} samples")
    return wrong
