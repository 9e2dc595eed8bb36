"""How a network holds under common corruptions: what it sees of a chunk, and what all verdicts come to.

Hendrycks and Dietterich 2019 (arXiv 1903.12261). With A(c, s) the accuracy under corruption c at severity s:

    A(c) = mean_s A(c, s),    CE(c) = (1 - A(c)) / (1 - A_AlexNet(c)),    mCE = mean of CE over the 15
    relative CE(c) = (clean - A(c)) / (clean_AlexNet - A_AlexNet(c))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from robust_train.data.corruptions import BENCHMARK, CATEGORIES, NAMES, SEVERITIES, corrupt
from robust_train.evaluate.report import Figure
from robust_train.keyed import Key
from robust_train.nouns import Batch

ALEXNET = {  # mean error over the severities, ImageNet-C at 224 pixels: as easyrobust has them
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN = 0.4348  # its error on clean images
ALEXNET_SIZE = 224  # the figures above say nothing of other sizes

Cell = tuple[str, int]
"""A corruption and a severity."""


def corrupted(batch: Batch, corruption: str, severity: int, key: Key, frost: str | Path | None = None) -> Batch:
    """The chunk with its images corrupted, on its device, in [0, 1]; float32 where they were uint8.

    images: uint8, or k / 255. frost: the folder of the textures. A pixel depends on the image, its `sample` and the key
    alone, so that every network sees the same.
    """
    images = batch.images
    levels = images if images.dtype == torch.uint8 else (255 * images).round().to(torch.uint8)
    made = corrupt(levels, corruption, severity, key.of("corruptions").rows(batch.sample.cpu()), frost)
    dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    return replace(batch, images=made.to(dtype) / 255)


@dataclass(frozen=True)
class Robustness:
    """Accuracies under corruptions. Means are of what was judged at all five severities, None where that is not so."""

    counts: Mapping[Cell, tuple[int, int]]  # (right, images)
    clean: tuple[int, int] | None = None  # the same of the clean images; None: not judged
    size: int | None = None  # side of the images in pixels; mCE is defined for 224

    def __post_init__(self) -> None:
        for (name, severity), (held, images) in self.counts.items():
            if name not in NAMES or severity not in SEVERITIES:
                raise ValueError(f"{name!r} at severity {severity} is no corruption of the benchmark")
            if not 0 <= held <= images or not images:
                raise ValueError(f"{name} at severity {severity}: {held} right of {images} images")

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Those judged at any severity, in the benchmark's order."""
        return tuple(name for name in NAMES if any(cell[0] == name for cell in self.counts))

    @property
    def figures(self) -> dict[Cell, Figure]:
        """Each accuracy by itself, with its interval; in the benchmark's order."""
        cells = [(name, severity) for name in NAMES for severity in SEVERITIES if (name, severity) in self.counts]
        return {cell: Figure(f"{cell[0]}/{cell[1]}", *self.counts[cell]) for cell in cells}

    @property
    def clean_figure(self) -> Figure | None:
        """The accuracy on clean images, with its interval."""
        return None if self.clean is None else Figure("clean", *self.clean)

    @property
    def clean_accuracy(self) -> float | None:
        """On clean images."""
        return None if self.clean_figure is None else self.clean_figure.accuracy

    def accuracy(self, name: str) -> float | None:
        """A(c): the mean over the five severities of a corruption."""
        return _mean(self._cell(name, severity) for severity in SEVERITIES)

    def severity(self, severity: int) -> float | None:
        """The mean over the 15 at one severity."""
        return _mean(self._cell(name, severity) for name in BENCHMARK)

    def category(self, category: str) -> float | None:
        """The mean over a category: noise, blur, weather or digital."""
        return _mean(self.accuracy(name) for name in CATEGORIES[category])

    @property
    def mean(self) -> float | None:
        """The mean over the 15."""
        return _mean(self.accuracy(name) for name in BENCHMARK)

    @property
    def mean_of_categories(self) -> float | None:
        """The mean over the four categories: noise, with three corruptions, weighs as much as each of the others."""
        return _mean(self.category(category) for category in CATEGORIES)

    def ce(self, name: str) -> float | None:
        """The error as a share of AlexNet's; at 224 pixels and for the 15 only."""
        accuracy = self.accuracy(name)
        if accuracy is None or self.size != ALEXNET_SIZE or name not in ALEXNET:
            return None
        return (1 - accuracy) / ALEXNET[name]

    def relative_ce(self, name: str) -> float | None:
        """The error beyond that on clean images, as a share of AlexNet's."""
        accuracy, clean = self.accuracy(name), self.clean_accuracy
        if accuracy is None or clean is None or self.size != ALEXNET_SIZE or name not in ALEXNET:
            return None
        return (clean - accuracy) / (ALEXNET[name] - ALEXNET_CLEAN)

    @property
    def mce(self) -> float | None:
        """The mean of CE over the 15, a fraction: 0.767 is what is written as mCE 76.7."""
        return _mean(self.ce(name) for name in BENCHMARK)

    @property
    def relative_mce(self) -> float | None:
        """The mean of relative CE over the 15, a fraction."""
        return _mean(self.relative_ce(name) for name in BENCHMARK)

    def _cell(self, name: str, severity: int) -> float | None:
        held, images = self.counts.get((name, severity), (0, 0))
        return held / images if images else None

    def gain(self, base: Robustness) -> Gain:
        """How much better than `base`, relative to it."""
        each = {name: _gain(self.accuracy(name), base.accuracy(name)) for name in self.corruptions}
        categories = {name: _gain(self.category(name), base.category(name)) for name in CATEGORIES}
        mean_of_gains = _mean(each.get(name) for name in BENCHMARK)
        return Gain(each, categories, mean_of_gains, _gain(self.mean, base.mean))

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Robustness:
        """What `tree` gave. Raises KeyError or TypeError for another tree, ValueError for one that cannot be."""
        cells = {(one["corruption"], one["severity"]): (one["right"], one["images"]) for one in tree["cells"]}
        clean = tree["clean"]
        return cls(cells, None if clean is None else (clean["right"], clean["images"]), tree["size"])

    def tree(self) -> dict[str, Any]:
        """For JSON. Nothing is rounded; null stands where something was not judged."""
        names = self.corruptions
        return {
            "size": self.size,
            "clean": None if self.clean is None else Figure("clean", *self.clean).tree(),
            "cells": [
                {"corruption": name, "severity": severity, **{k: one.tree()[k] for k in _CELL}}
                for (name, severity), one in self.figures.items()
            ],
            "corruptions": {name: self.accuracy(name) for name in names},
            "severities": {str(severity): self.severity(severity) for severity in SEVERITIES},
            "categories": {name: self.category(name) for name in CATEGORIES},
            "mean": self.mean,
            "mean_of_categories": self.mean_of_categories,
            "ce": {name: self.ce(name) for name in names},
            "mce": self.mce,
            "relative_mce": self.relative_mce,
        }


@dataclass(frozen=True)
class Gain:
    """(A - A_base) / A_base, by corruption, by category, and over the 15 in both ways; None where not judged."""

    corruptions: Mapping[str, float | None]
    categories: Mapping[str, float | None]
    mean_of_gains: float | None  # the mean of the 15 gains: what is gained where the base is weak weighs more
    gain_of_means: float | None  # the gain of the mean accuracy

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "corruptions": dict(self.corruptions),
            "categories": dict(self.categories),
            "mean_of_gains": self.mean_of_gains,
            "gain_of_means": self.gain_of_means,
        }


def efficiency(student: float | None, base: float | None, ensemble: float | None) -> float | None:
    """Of what an ensemble gains over a base, the share that its student keeps: (A_s - A_b) / (A_e - A_b).

    Accuracies, of one corruption or category or the mean. None where one was not judged or the ensemble gains nothing.
    """
    if student is None or base is None or ensemble is None or ensemble == base:
        return None
    return (student - base) / (ensemble - base)


_CELL = ("right", "images", "accuracy", "interval95")


def _gain(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else (value - base) / base


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean where nothing is absent, else None."""
    found = list(values)
    known = [value for value in found if value is not None]
    return fmean(known) if known and len(known) == len(found) else None
