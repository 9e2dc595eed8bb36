"""Files are whole or as they were."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest

from robust_train import disk

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_there_and_folders_above_it_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    disk.write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    disk.write_json(path, {"a": [1]})
    assert path.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    assert names(path.parent) == ["b.txt"]
    assert disk.checksum(path) == hashlib.sha256(path.read_bytes()).hexdigest() == disk.digest(path.read_text())


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_whatever_interrupts_it_the_file_is_as_it_was(where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    disk.write_text(path, "before")

    def stop(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def half(file: IO[bytes]) -> None:
        file.write(b"aft")
        if where == "write":
            stop()

    met = mock.patch.object(os, where, stop) if where != "write" else nullcontext()
    with met, pytest.raises(OSError, match="No space left"):
        disk.write_whole(path, half)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_bytes_are_on_the_disk_before_they_have_their_name_and_the_name_after(tmp_path: Path) -> None:
    """Else a power cut leaves an empty file under the name of a whole one."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    def renamed(*paths: Any) -> None:
        done.append("name")
        replace(*paths)

    with mock.patch.object(os, "fsync", synced), mock.patch.object(os, "replace", renamed):
        disk.write_text(tmp_path / "a.txt", "text")
    assert done == ["file", "name", "folder"]


def test_nobody_else_writes_a_file_in_another_s_place_or_hashes_one() -> None:
    """os.replace and file_digest elsewhere: whole folders (checkpoint.py, tools/convert.py's) alone."""
    spared = {"robust_train/disk.py", "robust_train/checkpoint.py", "tools/convert.py"}
    files = [path for folder in ("robust_train", "tools", "launch") for path in (ROOT / folder).rglob("*.py")]
    own = re.compile(r"os\.replace|file_digest|\.partial\"")
    found = {str(path.relative_to(ROOT)) for path in files if own.search(path.read_text())}
    assert found <= spared | {"robust_train/data/digits.py"}  # a folder of its own, renamed where it is not there yet
