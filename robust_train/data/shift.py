"""Shift: images of ImageNet's classes that a network was not trained for, and which answers to them are right.

They lie as users have them: a folder of class folders, or WebDataset shards whose keys are FOLDER/NAME, as
tools.make_shards writes them. Whatever the order of files, the class is read off the key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from robust_train.data.imagenet import LabelFiles
from robust_train.data.indexed import Indexed
from robust_train.data.loader import Allowance, batches, evenly
from robust_train.data.manifest import SUFFIXES, locate, remote
from robust_train.data.pictures import Answered, Centred, Pictures, labelled
from robust_train.data.table import open_table
from robust_train.disk import digest
from robust_train.nouns import Batch, Dataset, Place, Shape
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.paths import FilePath, home_cache


@dataclass(frozen=True)
class Shift(Dataset, ABC):
    """Images for a network of ImageNet's classes to be judged on; none to train on.

    Batches hold the label (the least right class) as target and `extra["right"]` [B, classes] bool, all right classes.
    Images are resized and cut as by timm's evaluation, also those that have the network's size already (crop=1 leaves
    them alone). Where a limit is set, so many images are taken evenly over the set, which lies in the order of classes.
    """

    folder: FilePath  # class folders, or shards: a path, folder, glob, brace list, pipe: command or URL
    labels: FilePath | None = None  # folder of label files, named as timm names its own; null: timm's own
    size: int = 224  # side of the square images that the network takes, in pixels
    crop: float = 0.875  # share of the resized short side that is cut out; the model's own, as timm's crop_pct
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of resizing; the model's own, as timm says it
    workers: int = 0  # processes that decode; 0: the evaluating process itself
    missing: int = 0  # broken images that are allowed before the evaluation stops
    cache: FilePath = field(default_factory=home_cache)  # folder here for indices, unpacked and fetched shards

    spread: ClassVar[bool] = True
    harmless: ClassVar[tuple[str, ...]] = ("folder", "labels", "workers", "missing", "cache")
    border: ClassVar[int] = 0  # pixels on each side that are no part of the picture
    among: ClassVar[str] = "WordNet ids such as n01440764"  # what its folders are called

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("workers", 0), ("missing", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop:g} is not in (0, 1]: it is a share of the image's side")

    # -- which answers are right ------------------------------------------------------------------

    @abstractmethod
    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The right classes of an image, ascending; none: it is left out. label: what a shard says, None elsewhere."""

    @property
    def allowed(self) -> Tensor | None:
        """The classes whose logits are compared, ascending; None: all."""
        return None

    def right(self, logits: Tensor, batch: Batch) -> Tensor:
        """[B] bool: whether the largest of the compared logits is one of a right class. NaN is wrong.

        logits [B, classes]. Raises ConfigError for a network of other classes.
        """
        self.fits(logits.shape[1])
        compared = logits
        if self.allowed is not None:
            outside = torch.ones(self.classes, dtype=torch.bool, device=logits.device)
            outside[self.allowed.to(logits.device)] = False
            compared = logits.masked_fill(outside, -torch.inf)
        hit = batch.extra["right"].gather(1, compared.argmax(1, keepdim=True))[:, 0]
        return hit & logits.isfinite().all(1)

    def fits(self, classes: int) -> None:
        """Raises ConfigError for a network of other classes."""
        if classes != self.classes:
            raise ConfigError(
                f"{self.label} needs a network of ImageNet's {self.classes:,} classes, in the order of the sorted "
                f"WordNet ids, but this one has {classes:,}. Give another network, or leave {self.label} out."
            )

    # -- what a data set says of itself -----------------------------------------------------------

    @property
    def label(self) -> str:
        """The name that stands beside its figures."""
        return self.use

    @property
    def classes(self) -> int:
        """As many as the label files name: ImageNet's 1,000."""
        return len(self.files.synsets)

    @property
    def shape(self) -> Shape:
        """Colour, square."""
        return (3, self.size, self.size)

    @cached_property
    def files(self) -> LabelFiles:
        """What is known of the classes."""
        return LabelFiles(self.labels)

    def prepare(self) -> None:
        """List the images and find their classes. Raises DataError where that fails."""
        _ = self.kept

    def check(self) -> None:
        """Whether images and label files are there and belong together. Raises DataError."""
        self.prepare()

    def train_size(self) -> int:
        """None."""
        return 0

    def validation_size(self) -> int:
        """Images that are judged, broken ones included."""
        return len(self.kept.numbers)

    def names(self) -> list[str]:
        """The first word of each class's name."""
        return [name.split(",")[0] for name in self.files.names]

    def checksums(self) -> dict[str, str]:
        """sha256 of every shard; of a folder, that of its listing: name and bytes of every image."""
        source = self.kept.source
        if isinstance(source, Indexed):
            return {source.name(shard): sha256 for shard, sha256 in enumerate(source.checksums())}
        return {source.place.name: source.sums[0]}

    def on(self) -> dict[str, Any]:
        """All that verdicts are a function of beside the network: images, right classes, how they are prepared.

        Of a folder also when its images were written: a copy is judged anew.
        """
        right = digest(repr((self.kept.numbers, self.kept.answers)))
        prepared = {name: getattr(self, name) for name in ("size", "crop", "interpolation")}
        written = self.kept.source.sums[1] if isinstance(self.kept.source, Pictures) else None
        images = {"images": self.checksums(), "written": written}
        return {**images, "answers": right, "allowed": _listed(self.allowed), **prepared}

    def contents(self) -> dict[str, Any]:
        """As `on`."""
        return self.on()

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Refused: such images are for evaluation only."""
        raise ConfigError(f"data.use={self.use} is for evaluation only. Train on shards: data.use=shards.")

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks of `chunk` images, uint8: chunk i goes to rank i mod world; the last may be smaller."""
        kept = self.kept
        total = len(kept.numbers)
        tasks = evenly(place, chunk, total, limit)
        bilinear = self.interpolation == "bilinear"
        decoder = Centred(kept, None, self.size, 3, self.crop, self.classes, border=self.border, bilinear=bilinear)
        source = kept.source
        name = source.name if isinstance(source, Indexed) else (source.place.name,).__getitem__
        for batch in batches(decoder, tasks, place, self.workers, name, Allowance(self.missing, total)):
            yield replace(batch, extra={"right": self._right_classes(batch.sample)})

    # -- what it is made of -----------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """Where the class folders lie."""
        return Path(self.folder).expanduser()

    @cached_property
    def kept(self) -> Answered:
        """The images that are judged, with their right classes."""
        source = self._source
        found = [(n, self.answers(key, label)) for n, (key, label) in enumerate(labelled(source))]
        found = [(n, right) for n, right in found if right]
        if not found:
            raise DataError(
                f"{self.label}: {self.folder} holds no image with a class of ImageNet. Name another folder."
            )
        return Answered(source, tuple(n for n, _ in found), tuple(tuple(sorted(right)) for _, right in found))

    @cached_property
    def _source(self) -> Pictures | Indexed:
        if not self._sharded():
            return Pictures.below(self.home)
        cache = Path(self.cache).expanduser()
        return Indexed(open_table(locate(self.folder), cache))

    def _sharded(self) -> bool:
        if remote(self.folder) or self.folder.endswith(SUFFIXES):
            return True
        return self.home.is_dir() and any(path.name.endswith(SUFFIXES) for path in self.home.iterdir())

    def _right_classes(self, samples: Tensor) -> Tensor:
        table = torch.zeros(len(samples), self.classes, dtype=torch.bool)
        for row, sample in enumerate(samples.tolist()):
            table[row, list(self.kept.answers[sample])] = True
        return table

    def _said(self, label: int | None) -> bool:
        return label is not None and 0 <= label < self.classes

    def _stranger(self, key: str, why: str = "") -> DataError:
        folder = key.rpartition("/")[0]
        why = why or (f"and {folder!r} is none of its classes" if folder else "which lies in no class folder")
        return DataError(
            f"{self.label}: {self.folder} holds {key}, {why}. Name the folder that holds the class folders, which are "
            f"named by {self.among}, or shards whose keys are FOLDER/NAME."
        )


def _listed(classes: Tensor | None) -> list[int] | None:
    return None if classes is None else classes.tolist()
