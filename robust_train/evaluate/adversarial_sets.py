"""Saved adversarial sets, in AutoAttack's form: kept from an evaluation, checked again when loaded, judged again.

    FILE         torch.save({"adv_complete": points}), float32 [N, C, H, W] in [0, 1], in the order of the data set
    FILE.json    beside it: the images' samples and labels, the threat model with its eps, the attack, the checksum

The first is what AutoAttack's own example saves and what is passed on with RobustBench's models; the second is ours,
and may be absent where a set comes from elsewhere. Only tensors are read: no code that a file may hold is run.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robust_train.disk import write_json, write_whole
from robust_train.evaluate.accuracy import tally
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import Figure
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.trial import CLEAN
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.nouns import Attack, Dataset, Goal, Place, Threat, number
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.parse import tree_of

WHOLE = "adv_complete"  # the name of the points in AutoAttack's files
NAMED = 8  # images that a refusal names


@dataclass(frozen=True)
class Saved(Attack):
    """The points of a saved set in the place of an attack's: each image gets the one that was saved for it."""

    threat: Threat
    file: str  # where they lie, on every device's machine
    sha256: str  # of the points
    gaps: tuple[int, ...] = ()  # samples below the last that have no point: broken images

    harmless: ClassVar[tuple[str, ...]] = ("file",)  # sha256 says what lies there

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        """The points [B, ...] of the samples that the key's rows name."""
        rows = [sample - bisect_left(self.gaps, sample) for sample in key.row.tolist()]
        return self._points[rows].to(images)

    @cached_property
    def _points(self) -> Tensor:
        return load(self.file)

    def cost(self) -> float:
        return 0.0

    @property
    def label(self) -> str:
        return f"saved set {Path(self.file).name}"


@dataclass(frozen=True)
class Replayed(Robustness):
    """Robustness with a saved set in the place of the attack; everything else is judged and reported alike."""

    saved: Saved | None = None

    harmless: ClassVar[tuple[str, ...]] = (*Robustness.harmless, "saved")

    def cascade(self, threat: Threat, classes: int, stochastic: bool) -> tuple[Attack, ...]:
        """The saved set, where there is one."""
        return super().cascade(threat, classes, stochastic) if self.saved is None else (self.saved,)


def replayed(evaluation: Robustness, file: str | Path, data: Dataset) -> Replayed:
    """The same evaluation with the set in `file` for its attack, without a curve and the flags' own attacks.

    Raises ConfigError for several threat models, DataError for a set that `checked` refuses. Reads every image once.
    """
    if len(evaluation.threats) != 1:
        raise ConfigError(f"{file}: a saved set is of one threat model, and {len(evaluation.threats)} are asked for")
    (threat,) = evaluation.threats
    path = Path(file).absolute()
    points = load(path)
    gaps = checked(points, data, threat, evaluation.images, evaluation.chunk, str(file), beside(path))
    own = {name: getattr(evaluation, name) for name in (f.name for f in fields(evaluation))}
    own |= {"attack": "pgd", "curve": 0, "checks": 0, "sees": None, "points": False}
    return Replayed(**own, saved=Saved(threat, str(path), checksum(points), gaps))


def judged(
    network: Any,
    data: Dataset,
    points: Tensor,
    threat: Threat,
    images: int | None = None,
    chunk: int = 256,
    device: str = "cpu",
    source: str = "the points given",
) -> Figure:
    """Accuracy on the points [N, C, H, W] of the (first so many) validation images, by fresh float32 forwards.

    An image counts that is right when clean and at its point. Raises DataError for points that `checked` refuses.
    """
    gaps = checked(points, data, threat, images, chunk, source)
    given = Saved(threat, source, checksum(points), gaps)
    given.__dict__["_points"] = points  # in place of what a file gives
    batches = data.validation_batches(Place(), chunk, images)
    count, _, right = tally(network, batches, given, Key(0), device, torch.float32).tolist()
    return Figure(given.label, right, int(count), number(threat.eps), tree_of(given), threat.use)  # type: ignore[attr-defined]


def chosen(evaluation: Robustness, found: Columns, tag: str) -> Tensor:
    """[N, ...] of each image the point of the first trial where it fell, clean ones first; else the last attack's.

    Of an evaluation that kept its points. tag: the threat model's.
    """
    return torch.cat(list(parts(evaluation, found, tag)))


def parts(evaluation: Robustness, found: Columns, tag: str) -> Iterator[Tensor]:
    """The same chunk after chunk, of which one at a time is read: all of ImageNet's would be 30 GB."""
    verdicts, plan, _ = evaluation.read(found)
    names = [CLEAN, *(trial.name for trial in plan.of("attack", tag))]
    begin = 0
    for chunk in zip(*(found.chunks(name) for name in names), strict=True):
        end = begin + len(chunk[0]["apart/points"])
        points = chunk[-1]["apart/points"]
        for name, tensors in zip(reversed(names[:-1]), reversed(chunk[:-1]), strict=True):
            fallen = ~verdicts.columns[name].stands[begin:end]
            points = torch.where(fallen.view(-1, *[1] * (points.dim() - 1)), tensors["apart/points"], points)
        yield points
        begin = end


def save(
    path: str | Path,
    points: Iterable[Tensor],
    sample: Tensor,
    labels: Tensor,
    threat: Threat,
    about: Mapping[str, Any],
) -> None:
    """Write a set and what is known of it, each whole or not at all. about: the network and the attack, for JSON.

    points: some [n, C, H, W] after others, N in all; of which no more than one is in memory. They are laid down beside
    the file first, since torch writes a tensor in one go: until that is done the set takes its room twice.
    """
    path, told, shape = Path(path), hashlib.sha256(), [0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".points") as file:
        for part in points:
            rows = np.ascontiguousarray(part.detach().float().cpu().numpy())
            told.update(rows.data)
            file.write(rows.data)
            shape = [shape[0] + len(rows), *rows.shape[1:]]
        file.flush()
        laid = torch.from_file(file.name, shared=True, size=math.prod(shape)).view(shape)
        write_whole(path, lambda out: torch.save({WHOLE: laid}, out))
    said = {"images": shape[0], "shape": shape[1:], "sha256": told.hexdigest()}
    own = {"threat": tree_of(threat), "sample": sample.tolist(), "labels": labels.tolist()}
    write_json(_note(path), {**said, **own, **about})


def load(path: str | Path) -> Tensor:
    """The points [N, C, H, W] of a file, float32, read where they are looked at. DataError for what is no such file."""
    try:
        held = _read(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Name a set that --save-adversarial or AutoAttack wrote.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        first = str(error).partition("\n")[0][:100]
        raise DataError(
            f"{path} is no file of tensors alone ({first}). Write torch.save({{{WHOLE!r}: points}}, FILE)."
        ) from error
    points = held.get(WHOLE) if isinstance(held, Mapping) else held
    if not isinstance(points, Tensor):
        holds = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise DataError(
            f"{path} holds {holds[:200]}, and no tensor {WHOLE!r}. Of AutoAttack's individual results save one: "
            f"torch.save({{{WHOLE!r}: results[NAME]}}, FILE)."
        )
    if points.dim() != 4 or not points.is_floating_point():
        raise DataError(
            f"{path}: the points are {points.dtype} {list(points.shape)}; give floats [N, C, H, W] in [0, 1]"
        )
    return points.float()


def _read(path: str | Path) -> Any:
    """What a file of tensors holds, mapped where its form allows."""
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)


def beside(path: Path) -> dict[str, Any] | None:
    """What FILE.json says of a set; None where there is no such file. Raises DataError where it cannot be read."""
    try:
        said = json.loads(_note(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{_note(path)} is no JSON ({error}). Save the set again, or take the file away.") from error
    if not isinstance(said, dict) or not {"sample", "labels", "sha256"} <= said.keys():
        raise DataError(f"{_note(path)} says no sample, labels and sha256. Save the set again, or take the file away.")
    return said


def checked(
    points: Tensor,
    data: Dataset,
    threat: Threat,
    images: int | None = None,
    chunk: int = 256,
    source: str = "the points given",
    said: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """The samples that have no point, after every point was checked against the image it is of.

    There must be one for each (of the first so many) validation images, of their shape, finite, in [0, 1], and within
    eps (1 + 1e-5) + 1e-7 of its image. said: what stands beside the file. Raises DataError, which counts the points
    that are not so and names the first. Reads every image once.
    """
    if said is not None and said["sha256"] != checksum(points):
        raise DataError(f"{source}: the points are not those that {source}.json was written with. Save the set again.")
    sample: list[int] = []
    labels: list[int] = []
    faults: list[Tensor] = []
    reach = 0.0
    for batch in filter(len, data.validation_batches(Place(), chunk, images)):
        batch = batch.to("cpu")
        mine = points[len(sample) : len(sample) + len(batch)].float()
        if mine.shape[1:] != batch.images.shape[1:]:
            raise DataError(
                f"{source}: the points are {list(mine.shape[1:])}, the images {list(batch.images.shape[1:])}. Save the "
                "set for images of this size."
            )
        wrong, far = _wrong(batch.images[: len(mine)], mine, threat)
        faults.append(wrong)
        reach = max(reach, far)
        sample += batch.sample.tolist()
        labels += (labels_of(batch.targets)).tolist()
    if len(sample) != len(points):
        few = f" If they are of the first {len(points):,}, say --images {len(points)}." * (len(points) < len(sample))
        raise DataError(f"{source} holds {len(points):,} points, and {len(sample):,} images are judged.{few}")
    if said is not None and (said["sample"] != sample or said["labels"] != labels):
        pairs = zip(zip(said["sample"], said["labels"], strict=False), zip(sample, labels, strict=True), strict=False)
        other = sum(one != two for one, two in pairs)
        raise DataError(
            f"{source} is of other images: {other:,} of {len(sample):,} have another sample or label. Name the data it "
            "was made on (--data)."
        )
    _refuse(torch.cat(faults) if faults else torch.zeros(0, 3), reach, threat, sample, source)
    return tuple(sorted(set(range(sample[-1] + 1)) - set(sample))) if sample else ()


def checksum(points: Tensor) -> str:
    """sha256 of the points' bytes as float32."""
    told = hashlib.sha256()
    for part in points.detach().split(NAMED):
        told.update(np.ascontiguousarray(part.float().cpu().numpy()).data)
    return told.hexdigest()


def _wrong(images: Tensor, points: Tensor, threat: Threat) -> tuple[Tensor, float]:
    """([n, 3] which points are not finite, not in [0, 1], outside the threat model; how far the last lie at most)."""
    far = threat.distance(images, points)
    flat = points.flatten(1)
    unreal = ~flat.isfinite().all(1)
    beyond = ~unreal & ((flat < 0) | (flat > 1)).any(1)
    outside = ~unreal & (far > number(threat.eps) * (1 + 1e-5) + 1e-7)  # type: ignore[attr-defined]
    return torch.stack([unreal, beyond, outside], 1), float(far[outside].max()) if bool(outside.any()) else 0.0


def _refuse(faults: Tensor, reach: float, threat: Threat, sample: list[int], source: str) -> None:
    """DataError for points that are not finite, not in [0, 1], or outside the threat model. faults: [N, 3], as said."""
    eps = number(threat.eps)  # type: ignore[attr-defined]
    cures = {
        "are not finite": "Save the set again",
        "have pixels outside [0, 1]": "Save pixels before any normalisation, clipped to [0, 1]",
        f"lie outside {threat.use} of eps {eps:.6g}, the farthest at {reach:.6g}": "Name the threat model and eps that "
        "the set was made for, on the data it was made on",
    }
    each = (column.nonzero().flatten().tolist() for column in faults.unbind(1))
    lines = [
        f"{source}: {len(rows):,} of {len(faults):,} points {what} (samples "
        f"{', '.join(str(sample[r]) for r in rows[:NAMED])}{', ...' if len(rows) > NAMED else ''}). {cure}."
        for rows, (what, cure) in zip(each, cures.items(), strict=True)
        if rows
    ]
    if lines:
        raise DataError("\n".join(lines))


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
