"""Accuracy under shift: how much of what a network knows of ImageNet it keeps on images made otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from robust_train.data.imagenet import Subset
from robust_train.data.shift import Shift
from robust_train.data.shifts import ImageNet, ObjectNet, SomeClasses
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.files import Files
from robust_train.evaluate.report import Figure
from robust_train.evaluate.work import Piece
from robust_train.keyed import Key
from robust_train.nouns import Batch, Place
from robust_train.read.errors import ConfigError


@dataclass(frozen=True)
class Shifted:
    """A network's accuracy on a shift, beside that on ImageNet's validation images of the same classes."""

    figure: Figure
    compared: int  # classes whose logits were compared
    clean: Figure | None = None  # ImageNet's own images, the same logits compared; None where it was not asked for

    @property
    def gap(self) -> float | None:
        """Clean accuracy less shifted, as a fraction; None without the former."""
        return None if self.clean is None else self.clean.accuracy - self.figure.accuracy

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        clean = None if self.clean is None else self.clean.tree()
        return self.figure.tree() | {"compared": self.compared, "clean": clean, "gap": self.gap}


@dataclass(frozen=True)
class Portion:
    """How much of each set is judged."""

    chunk: int = 256  # consecutive images judged together
    images: int | None = None  # so many, evenly over the set; None: all

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.images is not None and self.images < 1):
            raise ValueError(f"chunk={self.chunk} and images={self.images} must be at least 1")

    def counts(self, shift: Shift) -> list[int]:
        """The images of each chunk, broken ones included."""
        size = shift.validation_size()
        images = size if self.images is None else min(self.images, size)
        return [min(self.chunk, images - first) for first in range(0, images, self.chunk)]


@dataclass(frozen=True)
class Shifts:
    """The sets that a network is judged on: shifts, beside ImageNet's validation images where these are given.

    For ImageNet-A and -R clean accuracy is over their 200 classes: those images, those logits. ObjectNet has none: its
    objects are not ImageNet's classes. Each set is judged once.
    """

    wanted: tuple[Shift, ...]
    imagenet: ImageNet | None = None

    def __post_init__(self) -> None:
        labels = [shift.label for shift in self.wanted]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice: name one folder for each set")

    @cached_property
    def sets(self) -> dict[str, Shift]:
        """All that is judged, by label."""
        beside = (self.beside(shift) for shift in self.wanted)
        return {shift.label: shift for shift in (*self.wanted, *(one for one in beside if one is not None))}

    def beside(self, shift: Shift) -> ImageNet | None:
        """ImageNet's own images of a shift's classes, the same logits compared; None where there are none."""
        if self.imagenet is None or isinstance(shift, ObjectNet):
            return None
        return replace(self.imagenet, only=cast(Subset, shift.which) if isinstance(shift, SomeClasses) else None)

    def shifted(self, found: Mapping[Piece, Tensor]) -> tuple[Shifted, ...]:
        """What the verdicts on all pieces come to."""
        clean = [self.beside(shift) for shift in self.wanted]
        return tuple(
            Shifted(
                self._figure(shift, found),
                shift.classes if shift.allowed is None else len(shift.allowed),
                None if own is None else self._figure(own, found),
            )
            for shift, own in zip(self.wanted, clean, strict=True)
        )

    def _figure(self, shift: Shift, found: Mapping[Piece, Tensor]) -> Figure:
        right = [verdicts for (_, name), verdicts in found.items() if name == shift.label]
        return Figure(shift.label, sum(int(one.sum()) for one in right), sum(len(one) for one in right))


def judge(
    network: Any, shifts: Shifts, portion: Portion, place: Place, done: Mapping[Piece, Tensor]
) -> Iterator[tuple[Piece, Tensor]]:
    """The verdicts [n] bool on each of this place's chunks of each set; pieces in `done` are not redone.

    Float32, eval mode, the classes compared and the answers taken as the set says; broken images are left out. A piece
    is a function of the network, the set and the portion alone: of no device, rank or earlier run. Costs a forward an
    image. Raises ConfigError for a network of other classes, DataError for images or label files that are not what
    they should be.
    """
    key = Key(0).of("verdict")
    for name, shift in shifts.sets.items():
        mine = range(place.rank, len(portion.counts(shift)), place.world)
        if all((number, name) in done for number in mine):
            continue  # nothing is decoded in vain
        for number, raw in place.numbered(shift.validation_batches(place, portion.chunk, portion.images)):
            if (number, name) not in done:
                yield (number, name), _right(network, shift, raw.to(place.device), key).cpu()


def _right(network: Any, shift: Shift, batch: Batch, key: Key) -> Tensor:
    if not len(batch):
        return torch.zeros(0, dtype=torch.bool)
    with judged(network, key.rows(batch.sample)), torch.no_grad():
        return shift.right(network(batch.images), batch)


class Kept:
    """Verdicts that are there, in `Files` of each set: the same evaluation goes on from there.

    Which other sets are asked for is not in a set's digest: what is there is taken.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], shifts: Shifts, portion: Portion) -> None:
        self.done: dict[Piece, Tensor] = {}
        self.files: dict[str, Files] = {}
        for name, shift in shifts.sets.items():
            counts = {(number, name): count for number, count in enumerate(portion.counts(shift))}
            own = {"set": name, "on": shift.on(), "images": portion.images, "chunk": portion.chunk}
            self.files[name] = Files(folder, {**header, **own}, counts)
        self.counts = {at: count for files in self.files.values() for at, count in files.counts.items()}

    def resume(self) -> int:
        """Read what is there, and the number of pieces read."""
        for files in self.files.values():
            self.done |= {at: found["right"] for at, found in files.read() if "right" in found}
        return len(self.done)

    def put(self, at: Piece, found: Tensor) -> None:
        """Keep a piece."""
        self.done[at] = found
        self.files[at[1]].write(at, {"right": found.contiguous()})

    @property
    def share(self) -> float:
        """Of the images to be judged those that were."""
        return sum(self.counts[at] for at in self.done) / max(sum(self.counts.values()), 1)

    def standing(self, name: str) -> str:
        """The accuracy on a set so far."""
        found = [verdicts for (_, own), verdicts in self.done.items() if own == name]
        count = sum(len(verdicts) for verdicts in found)
        return f"{sum(int(verdicts.sum()) for verdicts in found) / max(count, 1):.1%} of {count:,}"


def preprocessing(network: Any) -> dict[str, Any]:
    """{"crop", "interpolation"} of a timm model's evaluation, as fields of a shift; {} where it says none.

    Raises ConfigError where it does not resize the short side and cut out the middle.
    """
    own = getattr(getattr(network, "model", network), "pretrained_cfg", None) or {}
    ways = {"crop_mode": ("center", ("center",)), "interpolation": ("bicubic", ("bicubic", "bilinear"))}
    for name, (usual, known) in ways.items():
        if own.get(name, usual) not in known:
            raise ConfigError(
                f"the model's evaluation says {name}={own[name]!r}, but images are prepared by {' or '.join(known)}. "
                "Say crop and interpolation yourself; figures may then differ from published ones."
            )
    return {
        field: own[name] for name, field in (("crop_pct", "crop"), ("interpolation", "interpolation")) if name in own
    }
