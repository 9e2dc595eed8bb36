"""Tensors on the disk that say their own sum: files of them, and files to which one lot after another is added."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robust_train.disk import alone, sync_folder, write_bytes

LENGTH = 8  # bytes that say how many a lot has


def sealed(tensors: Mapping[str, Tensor], tag: str = "") -> bytes:
    """A safetensors file that says its own sum: a number that the disk has changed is no verdict."""
    return save(dict(tensors), {"sha256": _sum(tensors, tag), "tag": tag})


def loaded(path: Path) -> dict[str, Tensor] | None:
    """A file's tensors; one that is damaged is deleted, to be made again. OSError where the system cannot read it."""
    found = _opened(path.read_bytes())  # safetensors itself calls every trouble of the system a file that is not there
    if found is None:
        path.unlink(missing_ok=True)
        return None
    return found[1]


class Lots:
    """A file of lots of tensors, each under a tag, one added after the other: its length, and a sealed file.

    To add one costs what that has, however many there are. What a kill cut off at the end, and what the disk has
    changed, is not read; the next to add a lot takes it out.
    """

    whole = True  # whether all that was there could be read

    def __init__(self, path: Path) -> None:
        self.path, self._end = path, -1

    @cached_property
    def held(self) -> dict[str, dict[str, Tensor]]:
        """By tag, as they were when they were first asked for. Of lots of one tag the last counts."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        each = [_opened(lot) for lot in _lots(content)]
        found = [lot for lot in each if lot is not None]
        self.whole = len(found) == len(each) and sum(LENGTH + len(lot) for lot in _lots(content)) == len(content)
        if self.whole:
            self._end = len(content)
        return dict(found)

    def most(self, head: str, least: int) -> dict[str, Tensor] | None:
        """Of those tagged HEAD.COUNT the one of the highest count; None where that is below `least`."""
        count, tag = max(self._heads.get(head, []), default=(-1, ""))
        return self.held[tag] if count >= least else None

    @cached_property
    def _heads(self) -> dict[str, list[tuple[int, str]]]:
        found: dict[str, list[tuple[int, str]]] = {}
        for tag in self.held:
            head, _, count = tag.rpartition(".")
            found.setdefault(head, []).append((int(count.partition("-")[0]), tag))
        return found

    def add(self, tag: str, tensors: Mapping[str, Tensor]) -> None:
        """Add a lot, on the disk when this returns. Any number of processes may add to one file."""
        lot = sealed(tensors, tag)
        with alone(self.path.parent / ".lock"):
            there = self.path.stat().st_size if self.path.is_file() else 0
            if there != self._end:  # another process was here, or nobody has looked yet
                there = self._mended(there)
            with open(self.path, "r+b" if there else "wb") as file:
                file.seek(there)
                try:
                    file.write(len(lot).to_bytes(LENGTH, "little") + lot)
                    file.flush()
                except OSError:  # a full disk: what is there stays as it is
                    os.ftruncate(file.fileno(), there)
                    raise
                os.fsync(file.fileno())
            if not there:
                sync_folder(self.path.parent)
            self._end = there + LENGTH + len(lot)

    def _mended(self, size: int) -> int:
        """The file's size when only what can be read is in it."""
        content = self.path.read_bytes() if size else b""
        good = [lot for lot in _lots(content) if _opened(lot) is not None]
        kept = b"".join(len(lot).to_bytes(LENGTH, "little") + lot for lot in good)
        if len(kept) != len(content):
            write_bytes(self.path, kept)
        return len(kept)


def _lots(content: bytes) -> Iterator[bytes]:
    """Each lot that is there to its end."""
    at = 0
    while at + LENGTH <= len(content):
        size = int.from_bytes(content[at : at + LENGTH], "little")
        at += LENGTH
        if at + size > len(content):
            return
        yield content[at : at + size]
        at += size


def _opened(content: bytes) -> tuple[str, dict[str, Tensor]] | None:
    """(tag, tensors) of a sealed file; None where it is damaged."""
    try:
        found = load(content)
        said = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        return (said["tag"], found) if said["sha256"] == _sum(found, said["tag"]) else None
    except (SafetensorError, ValueError, KeyError):
        return None


def _sum(tensors: Mapping[str, Tensor], tag: str) -> str:
    return hashlib.sha256(tag.encode() + save(dict(tensors))).hexdigest()
