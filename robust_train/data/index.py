"""Byte offsets of every sample of a shard, found once and kept; packed and remote shards unpacked once beside them.

Everything lies in a cache folder, under names made of the shard's address, size and time of change: a shard that is
replaced gets an index of its own.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from robust_train import web
from robust_train.data.files.tar import Member, Reader, Stream, Truncated
from robust_train.data.manifest import GZIP, Entry, entry_of, packed, remote, shard_name
from robust_train.data.samples import EXTRA, LABEL, LABELS, grouped, image_of, label_of, refuse_dots
from robust_train.disk import alone, checksum, digest, write_json, write_whole
from robust_train.read.errors import DataError

LAYOUT = 3  # of an index's rows: those of another are made anew
SWOLLEN, LARGE = 200, 1 << 30  # a packed shard may grow so many times, or to so many bytes
ROW = np.dtype([("offset", "i8"), ("size", "i8"), ("label", "i8"), ("key", "S1")])  # keys are as wide as they must be


@dataclass(frozen=True)
class LocalShard:
    """A shard that can be read by offset.

    name: as messages call it. tar: a plain tar on this machine. rows: the .npy with (offset, size, label, key) of each
    sample, and an offset and size of each KEY.NAME.npy, as `where` calls them; size -1 where there is none. samples:
    how many. sha256: of the shard as the run names it.
    """

    name: str
    tar: str
    rows: str
    samples: int
    sha256: str


def open_shard(url: str, folder: Path) -> LocalShard:
    """The shard at `url`, fetched, unpacked and indexed unless it has been.

    Any number of processes may ask for it at once: one does the work, the others wait. What was fetched is kept, and
    fetched anew where the server's ETag, date or length are other ones. Raises DataError for a shard that is absent,
    empty, truncated, or not what its manifest says.
    """
    stem = folder / f"{shard_name(url).split('.')[0]}-{identity(url, folder)}"
    said = stem.with_name(stem.name + ".json")
    kept = _kept(said)
    if kept is None:
        with alone(stem.with_name(stem.name + ".lock")):
            kept = _kept(said)  # by another process, while this one waited
            if kept is None:
                kept = _make(url, stem)
                write_json(said, asdict(kept))
    return kept


def index(tar: Path, name: str) -> np.ndarray:
    """The rows of a plain tar's samples, in order: see LocalShard. DataError where it is empty or truncated.

    Reads headers and labels only: about 12,000 samples a second.
    """
    found: list[tuple[int, int, int, bytes]] = []
    extras: list[dict[str, tuple[int, int]]] = []
    try:
        with open(tar, "rb") as file, open(tar, "rb") as aside:
            reader = Reader(file, name, seeks=True)
            members = ((member.name, member) for member in resolved(reader, tar))
            for key, parts in grouped(members):
                image = image_of(parts)
                refuse_dots(name, key, parts)
                labels = {ending: label_bytes(aside, parts[ending], name) for ending in LABELS if ending in parts}
                offset, size = (0, -1) if image is None else (image.offset, image.size)
                found.append((offset, size, label_of(labels), key.encode()))
                ends = (ending for ending in parts if ending.endswith(EXTRA))
                extras.append({ending[: -len(EXTRA)]: (parts[ending].offset, parts[ending].size) for ending in ends})
            if not reader.ended:
                raise Truncated("the tar's end mark is missing")
    except (Truncated, OSError) as error:
        raise truncated(name, len(found), error) from error
    if not found:
        raise DataError(
            f"shard {name} holds no samples (KEY.jpg, .png or another image beside KEY.cls). Remove it, or rewrite it."
        )
    longest = max(len(row[3]) for row in found)
    names = sorted({name for extra in extras for name in extra})
    columns = [(column, "i8") for name in names for column in where(name)]
    absent = (0, -1)
    rows = [
        (*row, *(n for name in names for n in extra.get(name, absent)))
        for row, extra in zip(found, extras, strict=True)
    ]
    return np.array(rows, dtype=[*ROW.descr[:3], ("key", f"S{longest}"), *columns])


def where(name: str) -> tuple[str, str]:
    """The columns that say where a sample's KEY.NAME.npy begins and how many bytes it has."""
    return f"{name}.offset", f"{name}.size"


def truncated(name: str, samples: int, why: object) -> DataError:
    """What is said of a shard that ends before its end."""
    return DataError(
        f"shard {name} cannot be read to its end: after {samples:,} samples, {why}. It is truncated or damaged; "
        "copy it again, or rewrite it with python -m tools.make_shards."
    )


def unpacked(stream: IO[bytes], to: IO[bytes], name: str) -> str:
    """Copy a packed stream unpacked; the sha256 of the packed bytes."""
    reader = _Hashed(stream)
    try:
        with gzip.GzipFile(fileobj=reader) as opened:  # type: ignore[call-overload]
            done = 0
            while part := opened.read(1 << 20):
                done += len(part)
                if done > max(LARGE, SWOLLEN * reader.count):
                    raise DataError(
                        f"shard {name} grows more than {SWOLLEN} times when it is unpacked ({done:,} bytes so far), "
                        "which would fill the disk, and images do not. If it is sound, unpack it yourself (gunzip)."
                    )
                to.write(part)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise truncated(name, 0, error) from error
    while reader.read(1 << 20):  # whatever follows the last member belongs to the file's checksum
        pass
    return reader.digest.hexdigest()


class _Hashed:
    """A stream that remembers the checksum of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self.count = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        read = self.stream.read(size)
        self.digest.update(read)
        self.count += len(read)
        return read


def _make(url: str, stem: Path) -> LocalShard:
    name, entry = shard_name(url), entry_of(url)
    if entry is not None and not remote(url) and os.path.getsize(url) != entry.bytes:
        raise _differs(name, f"is {os.path.getsize(url):,} bytes", f"{entry.bytes:,}")
    tar, sha256 = Path(url), ""
    if remote(url) or packed(url):
        tar = stem.with_name(stem.name + ".tar")

        def fetch(to: IO[bytes]) -> None:
            nonlocal sha256
            with open_stream(url) as stream:
                sha256 = _copy(stream, to, name)

        write_whole(tar, fetch)
        if entry is not None and sha256 != entry.sha256:
            tar.unlink()
            raise _differs(name, f"has sha256 {sha256[:12]}...", f"{entry.sha256[:12]}...")
    else:
        tar = tar.absolute()
        # sizes agree: reading 150 GB again would prove little, unless the shard was written after its manifest
        believed = entry is not None and tar.stat().st_mtime <= (tar.parent / "manifest.json").stat().st_mtime
        sha256 = entry.sha256 if entry is not None and believed else checksum(tar)
        if entry is not None and sha256 != entry.sha256:
            raise _differs(name, f"has sha256 {sha256[:12]}...", f"{entry.sha256[:12]}...")
    rows = index(tar, name)
    if entry is not None and len(rows) != entry.samples:
        raise _differs(name, f"holds {len(rows):,} samples", f"{entry.samples:,}")
    path = stem.with_name(stem.name + ".npy")
    write_whole(path, lambda file: np.save(file, rows))
    return LocalShard(name, str(tar), str(path), len(rows), sha256)


def unzipped(stream: IO[bytes]) -> Stream:
    """A shard's bytes unpacked, whether it comes packed or not."""
    head = stream.read(2)
    joined: Any = _Joined(head, stream)
    return gzip.GzipFile(fileobj=joined) if head == GZIP else joined


def _copy(stream: IO[bytes], to: IO[bytes], name: str) -> str:
    """Copy a shard as a plain tar, whether it comes packed or not; the sha256 of what came."""
    head = stream.read(2)
    joined = _Joined(head, stream)
    if head == GZIP:
        return unpacked(joined, to, name)  # type: ignore[arg-type]
    reader = _Hashed(joined)  # type: ignore[arg-type]
    shutil.copyfileobj(reader, to, 1 << 20)
    return reader.digest.hexdigest()


class _Joined:
    """A stream whose first bytes have been looked at."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self.head, self.stream = head, stream

    def read(self, size: int = -1) -> bytes:
        head, self.head = self.head, b""
        return head + self.stream.read(size - len(head) if size >= 0 else -1) if head else self.stream.read(size)


@contextmanager
def open_stream(url: str) -> Iterator[IO[bytes]]:
    """A shard's bytes from wherever it lies, by WebDataset. DataError where that fails."""
    from webdataset import gopen

    try:
        stream: Any = web.Reader(url) if web.is_web(url) else gopen(url)
    except OSError as error:
        raise _unreadable(url, error) from error
    try:
        yield stream
        while stream.read(1 << 20):  # a command whose last bytes nobody takes would end by a broken pipe
            pass
        stream.close()
    except DataError as error:
        try:
            stream.close()
        except OSError as cause:  # the bytes ended early because the command or the transfer failed
            raise _unreadable(url, cause) from error
        raise
    except OSError as error:
        if error.errno is not None and not isinstance(
            error, web.Unreachable
        ):  # a full disk on our side is none of the shard's
            raise
        raise _unreadable(url, error) from error
    finally:
        with suppress(OSError):  # cut off before its end, whoever feeds the stream may say so
            stream.close()


def _unreadable(url: str, error: OSError) -> DataError:
    return DataError(
        f"shard {shard_name(url)}: {url} could not be read: {error}. Check the address, the network and the rights, "
        "then give the same command again."
    )


def _kept(said: Path) -> LocalShard | None:
    """What the cache knows of a shard; None where it knows nothing, or a file of it has gone."""
    if not said.exists():
        return None
    shard = LocalShard(**json.loads(said.read_text(encoding="utf-8")))
    return shard if os.path.exists(shard.tar) and os.path.exists(shard.rows) else None


def resolved(reader: Reader, tar: Path) -> Iterator[Member]:
    """An archive's files, hard links as the members that they stand for. Only where there are any is it read twice."""
    known: dict[str, Member] = {}
    for member in reader:
        if member.origin is not None:
            if not known:
                with open(tar, "rb") as file:
                    known = {one.name: one for one in Reader(file, reader.name, seeks=True) if one.origin is None}
            if member.origin not in known:
                raise DataError(
                    f"shard {reader.name}: member {member.name!r} is a link to {member.origin!r}, which is not in it. "
                    "Write the shard anew (tar --hard-dereference)."
                )
            member = replace(known[member.origin], name=member.name)
        yield member


def label_bytes(file: IO[bytes], member: Member, name: str) -> bytes:
    """What a label's entry holds. DataError for one that is too large to be a label."""
    if member.size > LABEL:
        raise DataError(
            f"shard {name}: {member.name} has {member.size:,} bytes, which is no label. Write an integer there."
        )
    file.seek(member.offset)
    return file.read(member.size)


def _differs(name: str, found: str, said: str) -> DataError:
    return DataError(
        f"shard {name} {found}, but manifest.json beside it says {said}. Copy the shard again, or, if it is meant to "
        "be as it is, write the manifest anew: python -m tools.make_shards FOLDER --index"
    )


def identity(url: str, folder: Path) -> str:
    """Of a shard: its address, size and time of change. DataError where a local one cannot be read.

    Of one by http what its server says of it (`web.stamp`); where nobody answers, what was last said, kept in `folder`.
    """
    said = url
    if web.is_web(url):
        said = f"{url}|{_stamp(url, folder)}"
    elif not remote(url):
        try:
            stat = os.stat(url)
        except OSError as error:
            raise DataError(
                f"shard {url} cannot be read: {error.strerror}. Correct data.train or data.validation."
            ) from error
        said = f"{os.path.abspath(url)}|{stat.st_size}|{stat.st_mtime_ns}"
    return digest(f"{LAYOUT}|{said}")[:16]


def agrees(entry: Entry, path: Path) -> bool:
    """Whether a shard is, to the byte, the one that a manifest speaks of."""
    return path.exists() and path.stat().st_size == entry.bytes and checksum(path) == entry.sha256


def _stamp(url: str, folder: Path) -> str:
    """What tells the shard at an address from another one there, now or when it was last asked for."""
    kept = folder / f"{digest(url)[:16]}.address"
    now = web.stamp(url)
    if now is None:
        if not kept.is_file():
            return ""  # fetching it will say why
        print(f"{url} does not answer: what was fetched of it before is used", file=sys.stderr, flush=True)
        return str(json.loads(kept.read_text(encoding="utf-8"))["stamp"])
    write_json(kept, {"url": url, "stamp": now})
    return now
