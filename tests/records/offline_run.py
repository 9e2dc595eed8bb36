"""What Weights & Biases wrote of an offline run."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # of LevelDB's log format, in which an offline run is written


class Told:
    """What an offline run's file says."""

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        for raw in frames(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.identity, self.kind, self.name = record.run.run_id, record.run.job_type, record.run.display_name
                self.config |= values(record.run.config.update)
            elif kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
        self.config.pop("_wandb", None)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics, without W&B's own entries."""
        rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.history]
        return [row for row in rows if "time/run" not in row and not any(key.startswith("pictures") for key in row)]


def whole(path: Path, patience: float = 60.0) -> Told:
    """What the file says at its end: W&B's own process writes it, and may still do so when finish() has returned."""
    deadline = time.monotonic() + patience
    while (told := Told(path)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return told


def frames(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after a header of seven bytes: pieces of (crc32, length, kind) and payload."""
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if left < 7 or kind == 0:  # a block's end is padded
            at += left
            continue
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            yield record
            record = b""


def values(items: Any) -> dict[str, Any]:
    """Key and JSON value of each item; a key may be nested."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
