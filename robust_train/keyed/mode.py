"""Mode: everything that a forward depends on beside its images and weights, as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from robust_train.keyed.key import Key

Norm = Literal["group", "running"]
"""Whose statistics BatchNorm takes: those of each group of images, or the running ones."""
Norms = Norm | Mapping[str, Norm]
"""One for all layers; or by the layer's name or the start of it (the longest counts), "" for the rest."""
Noisy = Literal["drawn", "fixed", "off"]
"""A network's own noise: drawn at each forward; one draw an image row, whatever key there is; none."""
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, eq=False)
class Draw:
    """A key as tensors: what layers draw from, so that a compiled or captured network has new keys as new inputs."""

    words: Tensor  # [2] int64: Philox's key words, never ints: a compiled network recompiles on those
    row: Tensor | None = None  # [B] int64, one an image; None: 0, 1, 2, ... of whatever is drawn

    @staticmethod
    def of(key: Key) -> Draw:
        """The key's, where its rows are."""
        words = torch.tensor(key.words, dtype=torch.int64)
        # not torch.tensor(..., device=device), which would wait for the device
        return Draw(words if key.row is None else words.to(key.row.device, non_blocking=True), key.row)

    def __getitem__(self, rows: Tensor) -> Draw:
        """The same for some of its images."""
        return Draw(self.words, _some(self.row, rows))

    def to(self, device: torch.device) -> Draw:
        """The same on a device."""
        row = None if self.row is None else self.row.to(device, non_blocking=True)
        return Draw(self.words.to(device, non_blocking=True), row)

    def rows(self, count: int, images: int | None, device: torch.device, what: str) -> Tensor:
        """[B] int64: the rows of the `images` of a forward (None: not known), of which a layer sees `count` rows.

        count = n B where a layer cuts each image into n windows, those of an image side by side (Swin). what: is drawn,
        for the ValueError where the key names other images.
        """
        if self.row is None:
            return torch.arange(count, device=device)
        named = len(self.row)
        if count % max(1, named) or (count and not named) or images not in (None, named):
            raise ValueError(
                f"the key of the {what} names {named} rows, but a layer sees {count} of {images or count} images: "
                "take `key.rows(position)` with one row for each image of the batch"
            )
        return self.row.to(device)


class Stream:
    """Where noise of the forwards to come is from: forward number n draws from key.at(n), or each from `key`."""

    def __init__(self, key: Key, matched: bool = False) -> None:
        self.key, self.matched = key, matched
        self._passed = [0]  # one with the streams of some of the images

    @property
    def forwards(self) -> int:
        """So far."""
        return self._passed[0]

    def next(self) -> Key:
        """The key of one more forward."""
        self._passed[0] += 1
        return self.key if self.matched else self.key.at(self.forwards - 1)

    def __getitem__(self, rows: Tensor) -> Stream:
        """The same stream for some of its images."""
        some = Stream(self.key.rows(_some(self.key.row, rows)), self.matched)
        some._passed = self._passed
        return some


def _some(row: Tensor | None, rows: Tensor) -> Tensor:
    """The rows of some of the images that a key names; one that names none counts them."""
    return rows if row is None else row[rows.to(row.device)]


class Changes(TypedDict, total=False):
    """What may be said of a mode; what is left out stays as it is."""

    norm: Norms  # by layer: those not named stay as they are
    record: bool
    masks: Key | Draw | Literal["off"]
    noise: Key  # forwards that follow each other draw other noise, in order
    matched: Key | Draw  # every forward draws the same noise
    noisy: Noisy
    rows: Tensor  # [b]: forwards see only these of the images that the keys name
    precision: Precision
    fixed: Key


@dataclass(frozen=True, eq=False)
class Mode:
    """What decides a forward beside images and weights. Its layers read it; nobody changes a part of it by hand."""

    norm: Norms = "group"
    record: bool = True  # whether forwards with a graph count towards the running statistics
    masks: Draw | Literal["off"] | None = None  # of dropout and stochastic depth; None: a layer that drops wants a key
    noisy: Noisy = "drawn"
    noise: Stream | Draw = field(default_factory=lambda: Stream(Key(0)))  # without a key forwards share one stream
    fixed: Key = field(default_factory=lambda: Key(0).of("fixed"))  # of all forwards where noise is fixed
    precision: Precision = "fp32"
    # of the forward that runs
    images: int | None = None  # None: as many as a layer sees rows
    drawn: Draw | None = None  # its noise; None: no forward has begun, or its noise is off
    swaps: tuple[tuple[Any, Any], ...] = ()  # (layer, hook that puts another tensor in place of its output)

    def norm_of(self, layer: str) -> Norm:
        """Whose statistics a layer takes."""
        if isinstance(self.norm, str):
            return self.norm
        names = [name for name in self.norm if layer == name or not name or layer.startswith(f"{name}.")]
        return self.norm[max(names, key=len)]

    def but(self, changes: Changes) -> Mode:
        """The same with some things said anew."""
        said = dict(changes)
        norm = changes.get("norm")
        if norm is not None and not isinstance(norm, str):
            said["norm"] = {**({"": self.norm} if isinstance(self.norm, str) else self.norm), **norm}
        masks = changes.get("masks")
        if isinstance(masks, Key):
            said["masks"] = Draw.of(masks)
        if "noise" in changes:
            said["noise"] = Stream(changes["noise"].of("noise"))
        matched = said.pop("matched", None)
        if matched is not None:
            said["noise"] = Stream(matched.of("noise"), matched=True) if isinstance(matched, Key) else matched
        said.pop("rows", None)
        rows = changes.get("rows")
        made: Mode = replace(self, **said)  # type: ignore[arg-type]
        if rows is None:
            return made
        masks = made.masks[rows] if isinstance(made.masks, Draw) else made.masks
        return replace(made, masks=masks, noise=made.noise[rows])

    def of_forward(self, images: int, device: torch.device, noisy: bool = True) -> Mode:
        """The mode of one forward, what it draws from named and on its device; noisy: whether any layer draws noise."""
        masks = self.masks.to(device) if isinstance(self.masks, Draw) else self.masks
        return replace(self, images=images, masks=masks, drawn=self._next().to(device) if noisy else None)

    def _next(self) -> Draw:
        if isinstance(self.noise, Draw):
            return Draw(Draw.of(self.fixed).words, self.noise.row) if self.noisy == "fixed" else self.noise
        key = self.noise.next()  # a forward without noise counts too
        return Draw.of(self.fixed.rows(key.row) if self.noisy == "fixed" else key)


class Held:
    """The mode of now of one network, which its BatchNorms, drops and noisy layers share."""

    def __init__(self, mode: Mode | None = None) -> None:
        self.now = mode or Mode()
        self._below: list[tuple[Mode, frozenset[str]]] = []  # modes that come back, and what was said upon each

    def settle(self, changes: Changes) -> None:
        """Change the mode for good."""
        self.now = self.now.but(changes)

    def rest(self, changes: Changes) -> None:
        """Change what the mode rests on, for good: what was said since, for a while, stays said."""
        left = dict(changes)
        for level, (mode, said) in enumerate(self._below):
            self._below[level] = (mode.but(left), said)  # type: ignore[arg-type]
            left = {name: value for name, value in left.items() if name not in said}
        self.now = self.now.but(left)  # type: ignore[arg-type]

    @contextmanager
    def entered(self, changes: Changes) -> Iterator[None]:
        """Change the mode for a while; what was before comes back, also after an error."""
        with self.under(self.now.but(changes), frozenset(changes)):
            yield

    @contextmanager
    def under(self, mode: Mode, said: frozenset[str] = frozenset()) -> Iterator[None]:
        """This mode for a while. said: what of it may not be changed beneath it meanwhile."""
        self._below.append((self.now, said))
        self.now = mode
        try:
            yield
        finally:
            self.now, _ = self._below.pop()
