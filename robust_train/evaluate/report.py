"""A report: what a network was attacked with, on which images, and how it held, with how sure that is."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_train.evaluate.accuracy import verdicts
from robust_train.keyed import Key
from robust_train.nouns import Attack, Batch

Seen = Callable[[int, int, int], None]
"""Told after each chunk what stands so far: images, right when clean, right when attacked."""


@dataclass(frozen=True)
class Figure:
    """One accuracy, and all that is needed to obtain it again."""

    name: str  # "clean", or the attack's own name: "pgd20"
    right: int  # images that were right, and stayed so
    images: int  # images that were judged
    eps: float | None = None  # radius, in the threat model's unit; None for clean images
    attack: dict[str, Any] = field(default_factory=dict)  # the attack as YAML says it

    @property
    def accuracy(self) -> float:
        """Right over all images, those wrong from the start included."""
        return self.right / self.images if self.images else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.accuracy, self.images)

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "interval95": list(self.interval),
            "right": self.right,
            "images": self.images,
            "eps": self.eps,
            "attack": self.attack,
        }


@dataclass(frozen=True)
class Judged:
    """The verdicts of one attack on some images, in the order of the data set. No attack: clean ones."""

    sample: Tensor  # [N] identities
    targets: Tensor  # [N] labels
    clean: Tensor  # [N] bool
    robust: Tensor  # [N] bool; equal to `clean` where there is no attack

    def per_class(self, classes: int) -> list[tuple[int, int, int]]:
        """(images, right when clean, right when attacked) of each class."""
        columns = (self.targets, self.targets[self.clean], self.targets[self.robust])
        counts = (torch.bincount(labels, minlength=classes).tolist() for labels in columns)
        return list(zip(*counts, strict=True))


@dataclass(frozen=True)
class Report:
    """What an evaluation found. Nothing in it is rounded."""

    figures: tuple[Figure, ...]  # clean first, then the attacks
    curve: tuple[Figure, ...]  # accuracy against eps, clean first; empty where none was asked for
    classes: tuple[
        tuple[int, int, int], ...
    ]  # (images, right when clean, right under the last figure's attack) a class
    signs: tuple[str, ...]  # of gradient masking; empty where none was seen

    @property
    def images(self) -> int:
        """Images that were judged."""
        return self.figures[0].images

    def tree(self, names: list[str]) -> dict[str, Any]:
        """For JSON; names: of the classes."""
        clean, attacked = self.figures[0].name, self.figures[-1].name
        return {
            "figures": [figure.tree() for figure in self.figures],
            "curve": [figure.tree() for figure in self.curve],
            "classes": [
                {"class": name, "images": count, f"right/{clean}": right, f"right/{attacked}": held}
                for name, (count, right, held) in zip(names, self.classes, strict=True)
            ],
            "masking": list(self.signs),
        }


def judge(
    network: Any,
    batches: Iterable[Batch],
    attack: Attack | None,
    key: Key,
    device: torch.device | str = "cpu",
    seen: Seen | None = None,
) -> Judged:
    """Verdicts on every image, chunk by chunk; a function of network, chunks and key alone.

    Images that stand in for broken ones are left out. Costs the attack and two forwards an image.
    """
    kept: list[tuple[Tensor, ...]] = []
    totals = [0, 0, 0]
    for batch in batches:
        if "broken" in batch.extra:
            batch = batch[batch.extra["broken"] == 0]
        if not len(batch):
            continue
        batch = batch.to(device)
        clean, robust, _ = verdicts(network, batch, attack, key)
        labels = batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1)
        columns = [tensor.cpu() for tensor in (batch.sample, labels, clean.bool(), robust.bool())]
        kept.append(tuple(columns))
        totals = [totals[0] + len(batch), totals[1] + int(columns[2].sum()), totals[2] + int(columns[3].sum())]
        if seen is not None:
            seen(totals[0], totals[1], totals[2])
    if not kept:
        none = torch.zeros(0, dtype=torch.int64)
        return Judged(none, none, none.bool(), none.bool())
    return Judged(*(torch.cat(column) for column in zip(*kept, strict=True)))


def wilson(accuracy: float, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a fraction of n images: where (p - accuracy)^2 <= z^2 p (1 - p) / n."""
    if images < 1:
        raise ValueError(f"images={images} must be at least 1: an interval needs images")
    shrink = 1 + z * z / images
    centre = (accuracy + z * z / (2 * images)) / shrink
    half = z / shrink * math.sqrt(accuracy * (1 - accuracy) / images + (z / (2 * images)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def circumstances(device: torch.device | str, began: float) -> dict[str, Any]:
    """With what and how long: versions, hardware, seconds since `began` (time.monotonic)."""
    import timm

    import robust_train

    named = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else platform.processor()
    return {
        "versions": {
            "robust_train": robust_train.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "python": platform.python_version(),
        },
        "device": f"{device}: {named or platform.machine()}",
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - began, 3),
    }
