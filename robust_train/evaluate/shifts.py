"""Accuracy under shift: how much of what a network knows of ImageNet it keeps on images made otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from robust_train.data.imagenet import Subset
from robust_train.data.shift import Shift
from robust_train.data.shifts import ImageNet, ObjectNet, SomeClasses
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import Figure, Report
from robust_train.keyed import Key
from robust_train.nouns import Batch, Dataset, Evaluator, Piece, Tensors
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
class Shifts(Evaluator):
    """Accuracy on shifts, beside ImageNet's validation images where these are given.

    For ImageNet-A and -R clean accuracy is over their 200 classes: those images, those logits. ObjectNet has none: its
    objects are not ImageNet's classes. Each set is judged once: float32, eval mode, the classes compared and the
    answers taken as the set says. Costs a forward an image.
    """

    wanted: tuple[Shift, ...]
    imagenet: ImageNet | None = None
    chunk: int = 256  # consecutive images judged together
    images: int | None = None  # so many of each set, evenly over it; None: all

    harmless: ClassVar[tuple[str, ...]] = ("wanted", "imagenet", "chunk", "images")  # each set is its pieces' own

    def __post_init__(self) -> None:
        labels = [shift.label for shift in self.wanted]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice: name one folder for each set")
        if self.chunk < 1 or (self.images is not None and self.images < 1):
            raise ValueError(f"chunk={self.chunk} and images={self.images} must be at least 1")

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

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> tuple[Piece, ...]:
        """Each set."""
        return tuple(Piece(name, data=shift, on=name, tally=name) for name, shift in self.sets.items())

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, Tensor]:
        """{"right"}: [n] bool. Raises ConfigError for a network of other classes."""
        (network,), shift = networks.values(), cast(Shift, piece.data)
        with judged(network, key.of("verdict").rows(batch.sample)), torch.no_grad():
            return {"right": shift.right(network(batch.images), batch)}

    def report(self, found: Columns) -> Report:
        """A figure for each set; the result: of each shift a `Shifted`."""
        figures = {
            name: Figure(name, int(found[name]["right"].sum()), len(found[name]["right"])) for name in found.judged
        }
        beside = [self.beside(shift) for shift in self.wanted]
        result = tuple(
            Shifted(
                figures[shift.label],
                shift.classes if shift.allowed is None else len(shift.allowed),
                None if own is None else figures[own.label],
            )
            for shift, own in zip(self.wanted, beside, strict=True)
        )
        return Report(tuple(figures.values()), result=result)


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
