"""Where shards lie, and what their manifest says of them.

`manifest.json` lies beside the shards:

    {"splits": {"train": {"samples": 50000, "shards": [{"file", "samples", "bytes", "sha256"}, ...],
                          "plan": {"resize", "interpolation", "quality", ...}}, ...}}

It is a table of counts and checksums, with what make_shards did to the pixels (`plan`), and nothing more: no address is
ever taken from it, so a manifest cannot make a run open or execute anything that the run does not name itself.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robust_train import web
from robust_train.read.errors import DataError

GZIP = b"\x1f\x8b"  # what a packed file begins with
SUFFIXES = (".tar", ".tar.gz", ".tgz")
ABSENT = (403, 404, 410)  # what servers say of a file that is not there
INDEX_COMMAND = "python -m tools.make_shards FOLDER --index"


@dataclass(frozen=True)
class Entry:
    """One shard's line in a manifest."""

    file: str
    samples: int
    bytes: int
    sha256: str


def locate(urls: str | Iterable[str]) -> tuple[str, ...]:
    """Paths, folders, globs, brace lists, `pipe:` commands and URLs to one address a shard, in order.

    A glob and a folder give their shards sorted by name. Raises DataError where a local file is absent.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else urls:
        if url.startswith("pipe:"):
            found.append(url)  # a command: its braces and stars are the shell's
            continue
        if "://" in url:
            found += braceexpand(url)
            continue
        there, rest = _literal(os.path.expanduser(url.removeprefix("file:")))
        for one in braceexpand(rest) if rest else [""]:
            found += _local(there, one)
    if not found:
        raise DataError("no shards are named: data.train takes a path, a glob, a brace list, pipe: or a URL")
    return tuple(found)


def remote(url: str) -> bool:
    """Whether a shard has to be fetched."""
    return url.startswith("pipe:") or "://" in url


def packed(url: str) -> bool:
    """Whether a shard is compressed as a whole: by its name, or where it lies here by its first bytes."""
    if url.endswith((".tar.gz", ".tgz")):
        return True
    if remote(url):
        return False
    with open(url, "rb") as file:
        return file.read(len(GZIP)) == GZIP


def shard_name(url: str) -> str:
    """What a shard is called in messages and checksums: its file name, or the end of its command."""
    return posixpath.basename(url.split("?")[0].rstrip("/")) or url


def entry_of(url: str) -> Entry | None:
    """What the manifest beside a shard says of it; None where there is no manifest, or it does not name the shard."""
    return None if url.startswith("pipe:") else _entries(*_beside(url)).get(shard_name(url))


def pixels_of(url: str) -> str | None:
    """What was done to the pixels of a shard when it was made, by the manifest beside it.

    "" where nothing was: the images' own files lie in it. None where nobody says: there is no manifest, or it was
    written for shards from elsewhere.
    """
    return None if url.startswith("pipe:") else _makings(*_beside(url)).get(shard_name(url))


def _beside(url: str) -> tuple[str, int]:
    """(the folder of a shard's manifest, the version of that)."""
    folder = url.rsplit("/", 1)[0] if remote(url) else str(Path(url).absolute().parent)
    stamp = 0 if remote(url) else _stamp(Path(folder) / "manifest.json")
    return folder, stamp


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder; without any, an empty one. DataError where it is no manifest."""
    path = folder / "manifest.json"
    if not path.exists():
        return {"splits": {}}
    return _checked(path.read_bytes(), str(path))


def entries(manifest: dict[str, Any], split: str | None = None) -> list[Entry]:
    """The shards of one split, or of all."""
    splits = manifest["splits"]
    chosen = splits.values() if split is None else [splits.get(split, {"shards": []})]
    return [
        Entry(str(shard["file"]), int(shard["samples"]), int(shard["bytes"]), str(shard["sha256"]))
        for said in chosen
        for shard in said["shards"]
    ]


def split_of(shards: Iterable[Entry]) -> dict[str, Any]:
    """A manifest's account of one split."""
    shards = list(shards)
    return {"samples": sum(shard.samples for shard in shards), "shards": [asdict(shard) for shard in shards]}


def _literal(path: str) -> tuple[str, str]:
    """(what is there by that very name, the pattern below it): brackets and braces in its name are no pattern."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        there = "/".join(parts[:count])
        if there and os.path.lexists(there):
            return there, "/".join(parts[count:])
    return "", path


def _local(there: str, pattern: str) -> list[str]:
    path = os.path.join(there, pattern) if there and pattern else there or pattern
    if not pattern and os.path.isdir(path):
        found = sorted(str(file) for file in Path(path).iterdir() if file.name.endswith(SUFFIXES))
        what = "holds no .tar or .tar.gz shard"
    elif glob.has_magic(pattern):
        found = sorted(glob.glob(os.path.join(glob.escape(there), pattern) if there else pattern))
        what = "matches no file"
    else:
        found = [path] if os.path.exists(path) else []
        what = "does not exist"
    if not found:
        raise DataError(
            f"shards: {path!r} {what} (working folder {os.getcwd()}). Correct data.train or data.validation, "
            "or make shards with python -m tools.make_shards SOURCE FOLDER."
        )
    return found


def _stamp(path: Path) -> int:
    """Changes when a file does: what is remembered of a manifest holds for this version of it only."""
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=64)
def _entries(folder: str, stamp: int) -> dict[str, Entry]:
    return {entry.file: entry for entry in entries(_manifest(folder, stamp))}


@lru_cache(maxsize=64)
def _makings(folder: str, stamp: int) -> dict[str, str]:
    splits = _manifest(folder, stamp)["splits"].values()
    plans = [(said["shards"], said["plan"]) for said in splits if isinstance(said.get("plan"), dict)]
    return {str(shard["file"]): _making(plan) for shards, plan in plans for shard in shards}


def _making(plan: dict[str, Any]) -> str:
    """What make_shards did to pixels, in words; "" for nothing."""
    size = plan.get("resize")
    if size is None:
        return ""
    how = [f"({plan['interpolation']})" if "interpolation" in plan else "", "and stored as JPEG"]
    how.append(f"of quality {plan['quality']}" if "quality" in plan else "of a quality that the manifest does not say")
    return " ".join(["short sides above", f"{size} pixels resized to", str(size), *filter(None, how)])


@lru_cache(maxsize=64)
def _manifest(folder: str, stamp: int) -> dict[str, Any]:
    """The manifest in a folder or at an address; without any, an empty one."""
    if "://" not in folder:
        return read_manifest(Path(folder))
    url = f"{folder}/manifest.json"
    try:
        found = web.read(url) if web.is_web(url) else _opened(url)
    except web.Unreachable as error:
        if error.status in ABSENT:
            return {"splits": {}}
        raise DataError(
            f"{error}. It says how many samples each shard beside it holds and what their checksums are: see that it "
            "can be read, then give the same command again."
        ) from error
    except OSError:  # no manifest there is no fault: only streams cannot do without
        return {"splits": {}}
    return _checked(found, f"{folder}/manifest.json") if found else {"splits": {}}


def _opened(url: str) -> bytes:
    from webdataset import gopen

    with gopen(url) as stream:
        return bytes(stream.read())


def _checked(found: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(found)
        entries(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} is no manifest of shards ({type(error).__name__}: {error}). Write it anew: {INDEX_COMMAND}"
        ) from error
    return manifest
