"""Tar archives, read header by header: where each member's bytes lie, and nothing that a hostile one could abuse.

Nothing is ever unpacked to a name that an archive gives. Long names (GNU, POSIX), hard links and archives that were
joined end to end are read; links, devices, sparse files, names that lead out of the archive and headers that are no
size of a name are refused with the member's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NoReturn, Protocol

from robust_train.read.errors import DataError
from robust_train.read.kinds import kind_of

BLOCK = 512  # bytes; a header is one, and two of zeros end an archive
HEADER = 1 << 20  # bytes that a long name and its like may have
MOST = 1 << 30  # bytes that a file of a sample may have
FILES, HARD, FOLDER, EXTENDED = (b"0", b"\0", b"7"), b"1", b"5", (b"L", b"K", b"x", b"g")
REFUSED = {
    b"2": "is a symbolic link, and nothing outside the archive is read (tar --dereference stores the file itself)",
    b"3": "is a device",
    b"4": "is a device",
    b"6": "is a pipe",
    b"S": "is a sparse file (tar --sparse)",
    b"M": "goes on from another archive (tar --multi-volume)",
}


class Stream(Protocol):
    """Bytes in order."""

    def read(self, size: int, /) -> bytes:
        """The next so many, fewer at the end."""


@dataclass(frozen=True)
class Member:
    """A file in an archive: where its bytes begin, and how many there are.

    origin: of a hard link, the name of the member whose bytes are its own; it has none itself.
    """

    name: str
    offset: int
    size: int
    origin: str | None = None


class Truncated(Exception):
    """An archive that ends before its end, or is none from some place on."""


class Reader:
    """The files of an archive in order.

    seeks: whether the stream can be searched; else what is not asked for is read and forgotten. After a member has been
    given out, `content` gives its bytes. `ended`: whether an end mark was seen after the last.
    """

    def __init__(self, stream: IO[bytes] | Stream, name: str, seeks: bool) -> None:
        self.stream, self.name, self.seeks = stream, name, seeks
        self.at = 0  # how much has been read or skipped
        self.left = 0  # of the member that was given out
        self.ended = False

    def __iter__(self) -> Iterator[Member]:
        said: dict[str, str] = {}  # by the headers before a member's own
        for header in self._headers():
            kind, size = header[156:157], _number(header[124:136])
            name = said.get("path") or _name(header)
            if kind not in EXTENDED and "size" in said:
                size = int(said["size"]) if said["size"].isdecimal() else None
            if size is None or size < 0:
                raise Truncated(f"member {name!r} says no size")
            if kind in EXTENDED:
                if size > HEADER:
                    self._refuse(name, f"has a header of {size:,} bytes, which is no name")
                said |= self._said(kind, size)
                continue
            linked, sparse = said.get("linkpath") or _text(header[157:257]), any("sparse" in word for word in said)
            said = {}
            if kind in REFUSED or sparse:
                self._refuse(name, REFUSED[b"S" if sparse else kind])
            if kind == FOLDER or name.endswith("/"):
                size = 0 if kind == FOLDER else size
            elif kind in (*FILES, HARD):
                if name.startswith("/") or ".." in name.split("/"):
                    self._refuse(name, "is a path that leads out of the archive")
                self.left = size = 0 if kind == HARD else size
                if size > MOST:
                    self._refuse(name, f"has {size:,} bytes, which is no image, label or table of a sample")
                yield Member(name, self.at, size, linked if kind == HARD else None)
                size -= size - self.left
                self.left = 0
                self._skip(size + -(self.at + size) % BLOCK)
                continue
            self._skip(size + -size % BLOCK)

    def content(self) -> bytes:
        """The bytes of the member that was given out last."""
        size, self.left = self.left, 0
        return self._exactly(size)

    def _said(self, kind: bytes, size: int) -> dict[str, str]:
        content = self._exactly(size)
        self._skip(-size % BLOCK)
        if kind == b"x":
            return _records(content)
        return {b"L": {"path": _text(content)}, b"K": {"linkpath": _text(content)}}.get(kind, {})

    def _headers(self) -> Iterator[bytes]:
        """Blocks that are headers; blocks of zeros, which end an archive, are passed over: another may be joined on."""
        while header := self._read(BLOCK):
            if not any(header):
                self.ended = True
                continue
            whole = len(header) == BLOCK and _number(header[148:156]) in _sums(header)
            if not whole and self.at <= BLOCK and (kind := kind_of(header)):
                raise DataError(f"shard {self.name} is no tar archive but {kind}.")
            if not whole:
                raise Truncated(
                    "what follows is no header of a tar archive" if header[BLOCK - 1 :] else "a header is cut off"
                )
            self.ended = False
            yield header

    def _refuse(self, member: str, why: str) -> NoReturn:
        raise DataError(
            f"shard {self.name}: member {member!r} {why}. Write the shard anew, such as by python -m tools.make_shards."
        )

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self.stream.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
            self.at += len(part)
        return b"".join(parts)

    def _exactly(self, size: int) -> bytes:
        found = self._read(size)
        if len(found) < size:
            raise Truncated(f"the last member lacks {size - len(found):,} of its {size:,} bytes")
        return found

    def _skip(self, size: int) -> None:
        if size <= 0:
            return
        if self.seeks:
            try:
                self.stream.seek(self.at + size - 1)  # type: ignore[union-attr]
                last = self.stream.read(1)
            except (OverflowError, OSError) as error:
                raise Truncated(f"a member has {size:,} bytes ({error})") from error
            if not last:
                raise Truncated(f"the last member lacks some of its {size:,} bytes")
            self.at += size
            return
        while size > 0:
            part = self.stream.read(min(size, 1 << 20))
            if not part:
                raise Truncated(f"the last member lacks {size:,} bytes")
            size -= len(part)
            self.at += len(part)


def _number(field: bytes) -> int | None:
    """A number as headers hold it: octal digits, or binary behind a first byte of 128 or 255. None where it is none."""
    if field[0] in (128, 255):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 255 else 0)
    try:
        return int(field.rstrip(b"\0 ").lstrip() or b"0", 8)
    except ValueError:
        return None


def _sums(header: bytes) -> tuple[int, int]:
    """A header's checksum, its own field as spaces; of bytes as they are, and as old programs took them, signed."""
    rest = header[:148] + header[156:]
    total = sum(rest) + 256
    return total, total - 256 * sum(byte > 127 for byte in rest)


def _text(field: bytes) -> str:
    """A name; bytes that are no UTF-8 as \\xe9."""
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _name(header: bytes) -> str:
    posix = header[257:263] == b"ustar\0"
    prefix, name = _text(header[345:500]) if posix else "", _text(header[:100])
    return f"{prefix}/{name}" if prefix else name


def _records(content: bytes) -> dict[str, str]:
    """POSIX's extended header: LENGTH KEY=VALUE, a line each."""
    found = {}
    while content.strip(b"\0"):
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or len(length) > 7 or not len(length) < int(length) <= len(content):
            raise Truncated("an extended header is damaged")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        content = content[int(length) :]
    return found
