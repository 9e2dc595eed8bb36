"""Accuracy under shift: how much of what a network knows of ImageNet it keeps on images made otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from robust_train.data.imagenet import Subset
from robust_train.data.shift import Shift
from robust_train.data.shifts import ImageNet, ObjectNet, SomeClasses
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.report import Figure
from robust_train.keyed import Key
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError

Seen = Callable[[int, int], None]
"""Told after each chunk what stands so far: images, and how many of them were right."""
Watch = Callable[[str], Seen | None]
"""Given the name of what begins, who is told of its progress."""


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


def shifted(
    network: Any,
    shift: Shift,
    device: torch.device | str = "cpu",
    watch: Watch = lambda name: None,
    chunk: int = 256,
    images: int | None = None,
) -> Figure:
    """Top-1 accuracy on a shift: float32, eval mode, the classes compared and the answers taken as the shift says.

    images: so many, evenly over the set; None: all. Broken images are left out. Costs a forward an image. Raises
    ConfigError for a network of other classes, DataError for images or label files that are not what they should be.
    """
    right = count = 0
    seen = watch(shift.label)
    with judged(network, Key(0)), torch.no_grad():
        for batch in shift.validation_batches(Place(), chunk, images):
            batch = batch[batch.extra["broken"] == 0].to(device)
            if not len(batch):
                continue
            right += int(shift.right(network(batch.images), batch).sum())
            count += len(batch)
            if seen is not None:
                seen(count, right)
    if not count:
        raise ConfigError(f"{shift.label}: there are no images to judge in {shift.folder}. Ask for at least one.")
    return Figure(shift.label, right, count)


def compare(
    network: Any,
    shifts: Iterable[Shift],
    imagenet: ImageNet | None = None,
    device: torch.device | str = "cpu",
    watch: Watch = lambda name: None,
    chunk: int = 256,
    images: int | None = None,
) -> tuple[Shifted, ...]:
    """`shifted` of each, beside the same network on ImageNet's validation images, where these are given.

    For ImageNet-A and -R clean accuracy is over their 200 classes: those images, those logits. ObjectNet has none: its
    objects are not ImageNet's classes. Each clean figure is made once.
    """
    clean: dict[str | None, Figure] = {}
    found = []
    for shift in shifts:
        figure = shifted(network, shift, device, watch, chunk, images)
        only = cast(Subset, shift.which) if isinstance(shift, SomeClasses) else None
        beside = imagenet is not None and not isinstance(shift, ObjectNet)
        if imagenet is not None and beside and only not in clean:
            clean[only] = shifted(network, replace(imagenet, only=only), device, watch, chunk, images)
        compared = shift.classes if shift.allowed is None else len(shift.allowed)
        found.append(Shifted(figure, compared, clean[only] if beside else None))
    return tuple(found)


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
