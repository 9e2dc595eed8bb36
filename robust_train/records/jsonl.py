"""Files of JSON lines that survive a kill at any moment.

A line is one record: {"update": u, ...} with the other keys sorted, floats by repr (they read back to the bit), and
"nan", "inf" and "-inf" as text, because JSON has no such numbers. The same records give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from robust_train import disk
from robust_train.read.errors import CheckpointError

Record = dict[str, Any]
NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def line(record: Mapping[str, Any]) -> bytes:
    """A record as one line, its newline included. `update` leads, the other keys are sorted."""
    ordered = {key: _plain(record[key]) for key in sorted(record, key=lambda key: (key != "update", key))}
    return (json.dumps(ordered, allow_nan=False, ensure_ascii=False) + "\n").encode()


def parse(text: bytes) -> Record:
    """The record of one line; "nan", "inf" and "-inf" are numbers again. Raises ValueError where it is no record."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError(f"{text[:60]!r} is no JSON object")
    return {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def read(path: str | Path) -> list[Record]:
    """The whole records of a file; a last line that a kill has cut is left out. An absent file has none."""
    return [record for _, record in whole(Path(path))]


def whole(path: Path) -> Iterator[tuple[int, Record]]:
    """Each whole record with the offset of its end. Raises CheckpointError at a broken line inside the file."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return  # cut by a kill
            end += len(text)
            try:
                yield end, parse(text)
            except ValueError as error:
                raise CheckpointError(
                    f"{path}, line {number}: {error}. A kill can cut the last line only, so the file was altered or "
                    f"its disk is damaged. Put the line right, or delete it and those after it."
                ) from error


class Lines:
    """A file that grows by whole lines, handed to the operating system one by one; read it with `tail -f`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    @property
    def is_open(self) -> bool:
        """Whether the file was cut to what is kept and is ready to grow."""
        return self._file is not None

    def open(self, size: int | None = None) -> None:
        """Keep the first `size` bytes (None: the whole lines) and go on after them. Costs one read of what is kept."""
        self.close()
        if size is None:
            size = max((end for end, _ in whole(self.path)), default=0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close(); O_APPEND: never overwrites
        os.ftruncate(self._file.fileno(), size)
        self.size, self._hash = size, _hashed(self.path, size)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record. Raises OSError, which names the file, where the disk is full."""
        if self._file is None:
            self.open()
        assert self._file is not None
        text = memoryview(line(record))
        self._hash.update(text)
        self.size += len(text)
        try:
            while len(text):
                text = text[self._file.write(text) :]  # an unbuffered write may take a part of it only
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> dict[str, Any]:
        """Put every byte on the disk. Returns what a checkpoint keeps of the file: its name, size and sha256 so far."""
        if self._file is None:
            self.open()
        assert self._file is not None
        os.fsync(self._file.fileno())
        disk.sync_folder(self.path.parent)
        return {"segment": self.path.name, "bytes": self.size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Let go of the file; another append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def sha256(path: Path, size: int) -> str | None:
    """Of the first `size` bytes of a file, in hexadecimal; None where it has fewer."""
    if not path.exists():
        return None if size else hashlib.sha256().hexdigest()
    return _hashed(path, size).hexdigest() if path.stat().st_size >= size else None


def _hashed(path: Path, size: int) -> Any:
    """The hash object, fed with the first `size` bytes: it goes on with what is appended."""
    fed = hashlib.sha256()
    with path.open("rb") as file:
        while size and (block := file.read(min(size, 1 << 20))):
            fed.update(block)
            size -= len(block)
    return fed


def _plain(value: Any) -> Any:
    """What JSON writes of a value: containers entry by entry, other numbers (tensors, NumPy's) as floats."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else str(number)
