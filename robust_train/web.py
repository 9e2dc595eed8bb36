"""Files by http(s): every wait has an end, every failure says the address, the attempt and its true cause.

A transfer that stalls or breaks off is gone on with where it stopped, ATTEMPTS times in all; what is refused for good
(401, 403, 404, 410) is not asked for again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PATIENCE = 30.0  # seconds without a byte
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; twice as many before each further one
FINAL = (400, 401, 403, 404, 405, 410, 451, 501)  # answers that another attempt does not change

Got = TypeVar("Got")


class Unreachable(OSError):
    """An address that could not be read. status: what the server answered, if it did."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def is_web(url: str) -> bool:
    """Whether an address is one of these."""
    return url.startswith(("http://", "https://"))


class Reader:
    """The bytes at an address, in order. Raises Unreachable, after ATTEMPTS, where they cannot be had."""

    def __init__(self, url: str) -> None:
        self.url, self.at = url, 0
        self.length: int | None = None
        self._response: Any = None
        self._tag: str | None = None
        self._failed = 0
        self._open()

    def read(self, size: int = -1) -> bytes:
        """As a file does, but never fewer bytes than asked for before the end."""
        found = bytearray()
        while size < 0 or len(found) < size:
            wanted = 1 << 20 if size < 0 else size - len(found)
            try:
                got = self._response.read(wanted)
                if not got and self.length is not None and self.at < self.length:
                    raise OSError(f"the transfer ended after {self.at:,} of {self.length:,} bytes")
            except (OSError, HTTPException) as error:
                self._again(error)
                continue
            if not got:
                break
            found += got
            self.at += len(got)
        return bytes(found)

    def close(self) -> None:
        """Hang up."""
        if self._response is not None:
            self._response.close()

    def _again(self, error: BaseException) -> None:
        self.close()
        _failed(self.url, error, self._failed)
        self._failed += 1
        self._open()

    def _open(self) -> None:
        """Connect, from the first byte that is missing."""

        def connect() -> None:
            headers = {"Range": f"bytes={self.at}-"} if self.at else {}
            self._response = urlopen(Request(self.url, headers=headers), timeout=PATIENCE)
            tag, length = self._response.headers.get("ETag"), self._response.headers.get("Content-Length")
            if self.at and tag != self._tag:
                raise Unreachable(f"{self.url}: the file was replaced while it was read; give the same command again")
            left = 0
            if self.at and self._response.status != 206:  # a server that knows no ranges: what was read is read again
                left = self.at
            self._tag = tag
            if not self.at:
                self.length = int(length) if length is not None else None
            while left:
                skipped = self._response.read(min(left, 1 << 20))
                if not skipped:
                    raise OSError("the transfer ended early")
                left -= len(skipped)

        self._failed = _tried(self.url, connect, self._failed)[1]


def read(url: str) -> bytes:
    """All bytes at an address."""
    reader = Reader(url)
    try:
        return reader.read()
    finally:
        reader.close()


@cache
def stamp(url: str) -> str | None:
    """What tells a file at an address from another: its ETag, date and length, asked for once a process.

    None where nobody answers; empty where the server says nothing of them.
    """

    def ask() -> str:
        with urlopen(Request(url, method="HEAD"), timeout=PATIENCE) as answer:
            said = [answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length")]
            return "|".join(said) if any(said) else ""

    try:
        return _tried(url, ask, 0)[0]
    except Unreachable as error:
        return "" if error.status in (403, 405, 501) else None  # servers that answer no HEAD


def _tried(url: str, ask: Callable[[], Got], failed: int) -> tuple[Got, int]:
    """What `ask` gives, and how many attempts have failed by then."""
    while True:
        try:
            return ask(), failed
        except Unreachable:
            raise
        except (OSError, HTTPException) as error:
            _failed(url, error, failed)
            failed += 1


def _failed(url: str, error: BaseException, failed: int) -> None:
    """Say that an attempt failed and wait before the next. Raises Unreachable where there is none."""
    status = error.code if isinstance(error, HTTPError) else None
    cause = f"HTTP {status} ({error.reason})" if isinstance(error, HTTPError) else str(getattr(error, "reason", error))
    if isinstance(error, TimeoutError) or "timed out" in cause:
        cause = f"no byte for {PATIENCE:g} s"
    cause = cause or type(error).__name__
    if status in FINAL:
        raise Unreachable(f"{url}: {cause}", status) from None
    if failed + 1 >= ATTEMPTS:
        raise Unreachable(f"{url}: {cause}, at attempt {failed + 1} of {ATTEMPTS}", status) from None
    print(f"{url}: {cause}, at attempt {failed + 1} of {ATTEMPTS}; it is tried again", file=sys.stderr, flush=True)
    time.sleep(PAUSE * 2**failed)
