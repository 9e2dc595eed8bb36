"""Images, or other samples, as they go from a data set to a network; and where a process stands in its job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

Shape = tuple[int, ...]
"""Of one sample: (channels, height, width) of an image, (T, 2, height, width) of events."""


@dataclass(frozen=True)
class Scale:
    """How what a data set stores becomes what a network sees: integers are divided by `divisor`, floats stay.

    Pixels k become k / 255; events and counts stay what they are: Scale(1, 0, most). low, high: the least and the most
    that a network then sees. Attacks keep to [0, 1], and refuse another box.
    """

    divisor: float = 255.0
    low: float = 0.0
    high: float = 1.0

    def __call__(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Stored values as a network sees them."""
        if stored.is_floating_point():
            return stored.to(torch.promote_types(stored.dtype, dtype))  # scaled already, or stored so: nothing is lost
        return stored.to(dtype) / self.divisor

    @property
    def boxed(self) -> bool:
        """Whether values lie in [0, 1], as attacks have it."""
        return (self.low, self.high) == (0.0, 1.0)


PIXELS = Scale()


@dataclass(frozen=True)
class Extra:
    """What each sample carries beside its image and label: neural responses, counts, an index into other images."""

    shape: Shape = ()  # of one sample's: [89] for 89 neurons; []: one number
    whole: bool = False  # integers (int64), such as an index; else float32


@dataclass(frozen=True)
class Batch:
    """Some consecutive samples of a global batch.

    images [B, *shape]: as the data set stores them (uint8 pixels) until they are on the device, then float.
    targets [B] int64 labels, or [B, C] float distributions.
    position [B] int64: the place in the global batch. sample [B] int64: the identity in the data set.
    extra: what each sample carries beside, by name, each [B, ...]; else empty.
    views: further augmented views of the same samples, each like images.
    broken [B]: 1 where another sample stands in for one that cannot be read; None where there are none, and always in
    validation, whose batches leave such samples out.
    beside: as many samples of a second data set, which come along row by row; None: there is none.
    """

    images: Tensor
    targets: Tensor
    position: Tensor
    sample: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    views: tuple[Tensor, ...] = ()
    broken: Tensor | None = None
    beside: Batch | None = None
    scale: Scale = PIXELS

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The same batch with some of its rows."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch on a device: one copy of the bytes, and only there stored values become floats in `dtype`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(
            moved,
            images=self.scale(moved.images, dtype),
            views=tuple(self.scale(view, dtype) for view in moved.views),
            extra={name: v.to(dtype) if v.is_floating_point() else v for name, v in moved.extra.items()},
            beside=None if moved.beside is None else moved.beside.to(device, dtype),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.images),
            change(self.targets),
            change(self.position),
            change(self.sample),
            {name: change(tensor) for name, tensor in self.extra.items()},
            tuple(change(view) for view in self.views),
            None if self.broken is None else change(self.broken),
            None if self.beside is None else self.beside._each(change),
            self.scale,
        )


@dataclass(frozen=True)
class Place:
    """Where this process stands in the job."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes the job's records."""
        return self.rank == 0

    def numbered(self, chunks: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """This rank's validation chunks, each with its number: rank, rank + world, rank + 2 world, ..."""
        return zip(count(self.rank, self.world), chunks, strict=False)
