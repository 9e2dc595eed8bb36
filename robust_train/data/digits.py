"""The digits that come with scikit-learn: 1,797 real images, for a demonstration that needs no download."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from robust_train.data.augment import ImageAugmentation, NoAugmentation
from robust_train.data.manifest import split_of
from robust_train.data.shards import Shards
from robust_train.data.write import Sample, sample, write_shard
from robust_train.disk import write_json
from robust_train.nouns import Batch, Dataset, Place, Shape
from robust_train.read.errors import DataError
from robust_train.read.paths import FilePath
from robust_train.read.registry import datasets

SIDE = 32
PER_SHARD = 500


@datasets.register("digits")
@dataclass(frozen=True)
class Digits(Dataset):
    """Handwritten digits of scikit-learn, 32x32 grey: 1,437 for training, 360 for validation; written once as shards.

    From 8x8 to 32x32 by bilinear interpolation; a stratified split of a fixed seed.
    """

    folder: FilePath = "data/digits"  # where the shards are, or are written
    augment: ImageAugmentation = field(default_factory=NoAugmentation)  # what is done to each training image
    workers: int = 0  # processes a rank that decode; 0: the training process itself
    views: int = 1  # augmented views of each training image, each drawn anew

    examples = """
    - {}
    - {workers: 1, augment: affine-flip}
    """
    harmless: ClassVar[tuple[str, ...]] = ("folder", "augment", "workers", "views")  # to what is judged

    def contents(self) -> Any:
        """As of any shards."""
        return self.shards.contents()

    @property
    def classes(self) -> int:
        """Ten."""
        return 10

    @property
    def shape(self) -> Shape:
        """Grey, 32 pixels a side."""
        return (1, SIDE, SIDE)

    @cached_property
    def shards(self) -> Shards:
        """The shards in the folder, as any others."""
        there = Path(self.folder).expanduser()
        return Shards(
            train=str(there / "digits-train-*.tar"),
            validation=str(there / "digits-validation-*.tar"),
            classes=self.classes,
            size=SIDE,
            channels=1,
            augment=self.augment,
            workers=self.workers,
            views=self.views,
            cache=str(there / "index"),
        )

    def prepare(self) -> None:
        """Write the shards unless they are there. Many processes may do so at once: the first to finish wins."""
        folder = Path(self.folder).expanduser()
        if not (folder / "manifest.json").exists():
            if folder.exists() and any(folder.iterdir()):
                raise DataError(
                    f"{folder} is not empty and holds no manifest.json: it is not ours to write digits into. Name "
                    "another folder with data.folder=..., or empty it."
                )
            _write_into(folder)
        self.shards.prepare()

    def check(self) -> None:
        """As of any shards."""
        self.shards.check()

    def train_size(self) -> int:
        """1,437."""
        return self.shards.train_size()

    def validation_size(self) -> int:
        """360."""
        return self.shards.validation_size()

    def names(self) -> list[str]:
        """0 to 9."""
        return self.shards.names()

    def checksums(self) -> dict[str, str]:
        """sha256 of every shard, by name."""
        return self.shards.checksums()

    def known(self) -> dict[str, str]:
        return self.shards.known()

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """As of any shards."""
        return self.shards.batches(place, batch, seed, start)

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """As of any shards."""
        return self.shards.validation_batches(place, chunk, limit)


def load() -> tuple[np.ndarray, np.ndarray]:
    """All digits: uint8 [1797, 32, 32] and labels [1797], in scikit-learn's order. Pixels are round(255 x / 16)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = torch.as_tensor(found.images / 16, dtype=torch.float32)[:, None]
    large = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return (large[:, 0] * 255).round().to(torch.uint8).numpy(), found.target


def split() -> dict[str, np.ndarray]:
    """Which digits are for training and which for validation: stratified, 80 % to 20 %, random_state 0."""
    from sklearn.model_selection import train_test_split

    labels = load()[1]
    train, validation = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return {"train": train, "validation": validation}


def samples(numbers: np.ndarray) -> Iterator[Sample]:
    """Digits by number, as samples to be written: lossless PNG and label."""
    from PIL import Image

    images, labels = load()
    for number in numbers.tolist():
        file = io.BytesIO()
        Image.fromarray(images[number]).save(file, "png")
        yield sample(f"digit_{number:04d}", "png", file.getvalue(), int(labels[number]))


def write(folder: Path, per_shard: int = PER_SHARD) -> None:
    """Write both splits with classes.json and manifest.json, which comes last."""
    manifest = {}
    for name, numbers in split().items():
        cuts = [numbers[first : first + per_shard] for first in range(0, len(numbers), per_shard)]
        shards = [write_shard(folder / f"digits-{name}-{i:06d}.tar", samples(cut)) for i, cut in enumerate(cuts)]
        manifest[name] = split_of(shards)
    write_json(folder / "classes.json", [str(digit) for digit in range(10)])
    write_json(folder / "manifest.json", {"name": "digits of scikit-learn", "splits": manifest})


def _write_into(folder: Path) -> None:
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        write(beside)
        os.rename(beside, folder)  # fails where another process was first and the folder is not empty
    except OSError:
        if not (folder / "manifest.json").exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
