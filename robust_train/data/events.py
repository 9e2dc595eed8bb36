"""Events of a camera that sees change alone: the digits moved by saccades, in frames of short times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor

from robust_train.data.digits import load, split
from robust_train.data.order import samples_of
from robust_train.nouns import Batch, Dataset, Place, Scale, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.registry import datasets

CORNERS = ((0.0, 0.0), (0.5, 1.0), (1.0, 0.0), (0.0, 0.0))  # of the path, (down, right): three saccades, as N-MNIST's
DARK = 0.1  # added to brightness in [0, 1] before its logarithm: what a sensor gives in the dark


@datasets.register("digit-events")
@dataclass(frozen=True)
class DigitEvents(Dataset):
    """scikit-learn's digits before a moving event camera: [T, 2, H, W], rises of brightness and falls, 0 or 1 a place.

    The digit goes along three saccades, a triangle, as N-MNIST's camera does (Orchard et al. 2015, arXiv 1507.07629),
    `substeps` places a frame. A pixel of log brightness L remembers the l at which it last spoke; where |L - l| reaches
    `contrast` it gives floor(|L - l| / contrast) events of its sign, and l moves by as many contrasts. Brightness is
    that of the 32x32 digits, every `stride`-th pixel. Real events, not a sensor's: no noise, no refractory time. Made
    in memory, without files; the split is that of `digits`.
    """

    frames: int = 8  # T: equal parts of the time
    stride: int = 2  # every so many pixels of the 32x32 digits: 2 gives 16x16
    travel: float = 6.0  # pixels of the 32x32 digit that the path is high and wide
    contrast: float = 0.3  # change of log brightness that an event stands for
    substeps: int = 4  # places of the digit in a frame
    binary: bool = True  # whether several events of a pixel in one frame are one, as attacks' box [0, 1] asks

    examples = "- {frames: 3, stride: 4}"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "substeps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("travel", "contrast"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name):g} must be positive")

    @property
    def classes(self) -> int:
        """Ten."""
        return 10

    @property
    def shape(self) -> Shape:
        """Frames, rises and falls, height, width."""
        side = -(-32 // self.stride)
        return (self.frames, 2, side, side)

    @property
    def scale(self) -> Scale:
        """Events as they are: 0 or 1, or counts up to the largest that occurs."""
        return Scale(1.0, 0.0, 1.0 if self.binary else float(self._all.max()))

    def prepare(self) -> None:
        """Make the events: seconds."""
        _ = self._all

    def check(self) -> None:
        """Nothing can be absent."""

    def train_size(self) -> int:
        """1,437."""
        return len(split()["train"])

    def validation_size(self) -> int:
        """360."""
        return len(split()["validation"])

    def names(self) -> list[str]:
        """The digits."""
        return [str(digit) for digit in range(10)]

    def checksums(self) -> dict[str, str]:
        """sha256 of all events."""
        return {"digit-events": hashlib.sha256(self._all.numpy().tobytes()).hexdigest()}

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """This rank's share of each global batch, uint8, from update `start` on, without end: as of indexed shards."""
        train = split()["train"]
        if batch % place.world or batch > len(train):
            raise ConfigError(
                f"batch={batch} must be a multiple of the {place.world} ranks, and at most {len(train):,}, the samples."
            )
        share = batch // place.world
        position = np.arange(place.rank * share, (place.rank + 1) * share)
        return (
            self._rows(train, samples_of(update, len(train), batch, seed)[1][position], position)
            for update in count(start)
        )

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks of consecutive validation samples, uint8."""
        numbers = split()["validation"]
        total = len(numbers) if limit is None else min(limit, len(numbers))
        for first in range(place.rank * chunk, total, place.world * chunk):
            rows = np.arange(first, min(first + chunk, total))
            yield self._rows(numbers, rows, rows)

    @property
    def _all(self) -> Tensor:
        return _events(self)

    def _rows(self, numbers: np.ndarray, samples: np.ndarray, position: np.ndarray) -> Batch:
        chosen = torch.from_numpy(numbers[samples])
        targets = torch.from_numpy(load()[1].astype(np.int64))[chosen]
        return Batch(
            self._all[chosen], targets, torch.from_numpy(position), torch.from_numpy(samples), scale=self.scale
        )


@lru_cache(maxsize=2)
def _events(said: DigitEvents) -> Tensor:
    """All digits' events, uint8 [1797, T, 2, H, W]."""
    digits = torch.from_numpy(load()[0])
    return torch.cat([events(some / 255, said) for some in digits.split(256)])


def events(brightness: Tensor, said: DigitEvents) -> Tensor:
    """The events of still pictures [B, H, W] in [0, 1] that are moved along the path: uint8 [B, *shape]."""
    steps = said.frames * said.substeps
    shift = said.travel * path(steps)
    seen = [(moved(brightness, *map(float, at))[:, :: said.stride, :: said.stride] + DARK).log() for at in shift]
    last, frames = seen[0].clone(), []
    for frame in range(said.frames):
        found = torch.zeros(len(brightness), 2, *last.shape[1:])
        for level in seen[1 + frame * said.substeps : 1 + (frame + 1) * said.substeps]:
            change = (level - last) / said.contrast
            whole = change.abs().floor()
            found += torch.stack([whole * (change > 0), whole * (change < 0)], 1)
            last = last + change.sign() * whole * said.contrast
        frames.append(found)
    made = torch.stack(frames, 1)
    return (made.clamp(max=1) if said.binary else made).to(torch.uint8)


def path(steps: int) -> Tensor:
    """[steps + 1, 2]: equally far apart in time on the three saccades, as shares of `travel`."""
    corners = torch.tensor(CORNERS)
    time = torch.arange(steps + 1) / steps * (len(corners) - 1)
    leg = time.floor().long().clamp(max=len(corners) - 2)
    return torch.lerp(corners[leg], corners[leg + 1], (time - leg)[:, None])


def moved(pictures: Tensor, down: float, right: float) -> Tensor:
    """Pictures [B, H, W] moved by a number of pixels, at least 0, bilinear; black comes in."""
    whole, rest = (int(down), int(right)), (down - int(down), right - int(right))

    def by(rows: int, columns: int) -> Tensor:
        height, width = pictures.shape[1:]
        return torch.nn.functional.pad(pictures, (columns, 0, rows, 0))[:, :height, :width]

    above = torch.lerp(by(*whole), by(whole[0], whole[1] + 1), rest[1])
    below = torch.lerp(by(whole[0] + 1, whole[1]), by(whole[0] + 1, whole[1] + 1), rest[1])
    return torch.lerp(above, below, rest[0])
