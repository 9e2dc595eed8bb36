"""Records: what the leading process writes of a run, beside its checkpoints."""

from __future__ import annotations

import io
import json
import platform
import re
import resource
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train import disk
from robust_train.nouns import Place
from robust_train.read.errors import CheckpointError
from robust_train.read.paths import word
from robust_train.records import jsonl
from robust_train.records.progress import Expected, Progress
from robust_train.records.wandb import Tracker


class Records:
    """A run's records, a context manager. On ranks other than the leading one every method does nothing.

        metrics.jsonl   functions of the run only: after any kill and restart the bytes of an undisturbed run
        timing.jsonl    times, rates, hosts, memory; one line {"start": ...} for each start
        summary.json    the table at the end
        pictures/       NAME-UPDATE.png
        wandb/          what W&B writes; its troubles never stop a run

    metrics.jsonl grows line by line. A checkpoint closes a segment: it keeps the size and the sha256 of the file so
    far (`close_segment`). A restart (`resume`) cuts the file there, and the updates that are redone write the lines
    after it again. So a kill in the middle of a line, or between a checkpoint and its manifest, leaves no trace.
    """

    def __init__(self, run: Any, place: Place, forecast: Expected | None = None) -> None:
        self.leads = place.leads
        self.folder = Path(word(run.folder))
        self.tracking = run.records
        self._place = place
        self._updates = int(run.updates)
        self._metrics = jsonl.Lines(self.folder / "metrics.jsonl")
        self._timing = jsonl.Lines(self.folder / "timing.jsonl")
        self._progress = Progress(
            run.name,
            run.updates,
            self.tracking.progress if self.leads else "off",
            forecast=forecast,
            clock=time.monotonic,
        )
        self._began = self._latest = time.monotonic()
        self._seen: int | None = None  # the last update that was counted
        self._counted = 0  # updates of this start
        self._tracker: Tracker | None = None
        if self.leads:
            self._tracker = Tracker(self.folder, run.name, lambda: _config(self.folder, run), self.tracking, self.say)

    def __enter__(self) -> Records:
        if self.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._timing.append(self._start())
            self._began = self._latest = time.monotonic()
            self._progress.start()
            if self._tracker is not None:
                self._tracker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.leads:
            if self._metrics.is_open:
                self._metrics.sync()
            self._metrics.close()
            self._timing.close()
            if self._tracker is not None:
                self._tracker.close(failed=kind is not None)
            self._progress.stop()

    def add(self, update: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl; several calls for one update are several lines. NaN is written as "nan".

        Raises ValueError for a key `time/...`: what depends on the machine goes to `time`.
        """
        if not self.leads:
            return
        if misplaced := [key for key in metrics if key.startswith("time/") or key == "update"]:
            raise ValueError(f"{misplaced[0]!r} is no metric: times go to Records.time, the update is given beside")
        if not self._metrics.is_open:
            self.resume(update)
        record = _record(update, metrics)
        self._metrics.append(record)
        self._progress.add(update, record)
        self._mirror(record)
        if update < self._updates and update != self._seen:
            self._seen, self._latest = update, time.monotonic()
            self._counted += 1
            if update % self.tracking.every == 0:
                self.time(update, self._pace())

    def time(self, update: int, timing: Mapping[str, float]) -> None:
        """Times, rates and memory of an update: a line of timing.jsonl, beside the one that every
        `records.every` updates is written anyway (time since this start, time an update, images/s, memory)."""
        if not self.leads:
            return
        self._progress.time(timing)
        record = _record(update, {"time/run": round(time.monotonic() - self._began, 3), **timing})
        self._timing.append(record)
        self._mirror(record)

    def picture(self, update: int, name: str, image: Tensor | bytes | str | Path) -> Path | None:
        """Write pictures/NAME-UPDATE.png and return its path; None where pictures are off.

        image: [C, H, W] or [H, W], float in [0, 1] or uint8, C of 1 or 3; or a PNG, as bytes or as a file's path.
        """
        if not (self.leads and self.tracking.pictures):
            return None
        path = self.folder / "pictures" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{update}.png"
        disk.write_bytes(path, _png(image))
        if self._tracker is not None:
            self._tracker.picture(update, name, path)
        return path

    def summary(self, values: Mapping[str, Any]) -> None:
        """Merge values into summary.json, whole or not at all."""
        if not self.leads:
            return
        path = self.folder / "summary.json"
        merged = {**(json.loads(path.read_text()) if path.exists() else {}), **json.loads(jsonl.line(values))}
        disk.write_text(path, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")
        if self._tracker is not None:
            self._tracker.summary(jsonl.parse(jsonl.line(values)))

    def expect(self, forecast: Expected) -> None:
        """Say what the run will take; progress keeps it current from then on."""
        if self.leads:
            self._progress.forecast = forecast
            self.say(str(forecast))

    def totals(self) -> dict[str, float]:
        """Of this start: `images` trained on, `seconds` until the last of them, `images/s`; {} without a forecast."""
        forecast = self._progress.forecast
        if not self.leads or forecast is None:
            return {}
        images, seconds = self._counted * forecast.batch, self._latest - self._began
        return {"images": images, "seconds": seconds} | ({"images/s": images / seconds} if images else {})

    def say(self, text: str) -> None:
        """One line to whoever watches, above the bar where there is one."""
        if self.leads:
            self._progress.say(text)

    def close_segment(self, update: int) -> dict[str, Any]:
        """Called by a checkpoint of which `update` is the first one not done. Every line so far is on the disk then.

        Returns {"segment", "bytes", "sha256"} of metrics.jsonl so far, for the checkpoint's manifest (other ranks: {}).
        """
        if not self.leads:
            return {}
        if not self._metrics.is_open:
            self.resume(update)
        return self._metrics.sync()

    def resume(self, update: int, closed: Mapping[str, Any] | None = None) -> None:
        """Drop what metrics.jsonl says of `update` and later ones: they will be done again.

        closed: what `close_segment` gave for the checkpoint gone on from. With it the file is cut at that very byte,
        and CheckpointError is raised where it does not begin with the lines that the checkpoint knew.
        """
        if not self.leads:
            return
        if not closed:
            self._metrics.open(self._before(update))
            return
        path, size = self._metrics.path, int(closed["bytes"])
        if jsonl.sha256(path, size) != closed["sha256"]:
            raise CheckpointError(
                f"{path}: its first {size} bytes are not those that the checkpoint of update {update} was saved with. "
                f"Put the file back as it was, or begin another folder, with start: set to that checkpoint."
            )
        self._metrics.open(size)

    def inherit(self, update: int, path: Path, closed: Mapping[str, Any]) -> None:
        """Begin with what the run that this one branches from had recorded by then; with nothing where that is gone."""
        if not self.leads:
            return
        size = int(closed["bytes"])
        whole = path.is_file() and path.stat().st_size >= size and jsonl.sha256(path, size) == closed["sha256"]
        with path.open("rb") if whole else io.BytesIO() as file:
            disk.write_bytes(self._metrics.path, file.read(size) if whole else b"")
        self._metrics.open(size if whole else 0)

    def _before(self, update: int) -> int:
        """Where the first line of `update` or a later one begins, in bytes."""
        size = 0
        for end, record in jsonl.whole(self._metrics.path):
            if record.get("update", update) >= update:
                break
            size = end
        return size

    def _mirror(self, record: dict[str, Any]) -> None:
        if self._tracker is not None:
            self._tracker.log(record)

    def _pace(self) -> dict[str, float]:
        """Seconds an update, images a second; the most memory held so far in MiB, by this process and on its device."""
        pace: dict[str, float] = {"memory/host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if torch.cuda.is_available() and str(self._place.device).startswith("cuda"):
            pace["memory/device"] = torch.cuda.max_memory_allocated() / 2**20
        if (seconds := self._progress.pace.seconds()) is not None:
            pace["time/update"] = seconds
            if self._progress.forecast is not None:
                pace["images/s"] = self._progress.forecast.batch / seconds
        return pace

    def _start(self) -> dict[str, Any]:
        """What timing.jsonl says of a start: when, where, with what."""
        return {
            "start": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "world": self._place.world,
            "device": str(self._place.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }


def _config(folder: Path, run: Any) -> str:
    """The run as YAML, and what it branches from."""
    kept = folder / "lineage.json"
    return run.dump() + (f"lineage: {kept.read_text(encoding='utf-8')}" if kept.is_file() else "")


def _record(update: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is written and shown of an update: integers as they are, every other number as a float."""
    return {"update": int(update)} | {
        key: value if isinstance(value, int) else float(value) for key, value in values.items()
    }


def _png(image: Tensor | bytes | str | Path) -> bytes:
    """The bytes of a PNG, made from a tensor where one is given."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    from PIL import Image

    pixels = image.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = (pixels.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.dim() == 2:
        pixels = pixels[None]
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"a picture is [1, H, W], [3, H, W] or [H, W], this one is {list(image.shape)}")
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()
