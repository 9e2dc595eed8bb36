"""Files that are whole or as they were, on the disk before they are believed; their checksums; who may write them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, put it on the disk, then give it its name: readers see it whole or not at all.

    Folders above it are made. Whatever interrupts it, the file that was there stays and nothing is left beside it; a
    process that is killed may leave `.NAME.PID.partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """The same, of bytes."""
    write_whole(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """The same, of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """The same, of JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def settle(path: Path) -> str:
    """Put a file's bytes on the disk, whoever wrote them; its checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return checksum(path)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, so that a new file in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(text: str) -> str:
    """sha256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, by a file that stays; the lock falls with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
