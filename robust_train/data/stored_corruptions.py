"""Corrupted images as they are published: ImageNet-C and Tiny-ImageNet-C in folders, CIFAR-10-C and CIFAR-100-C in npy.

    data = stored("ImageNet-C", classes=1000, size=224)
    for corruption in data.corruptions():
        for severity in SEVERITIES:
            batches = data.at(corruption, severity).validation_batches(Place(), chunk=256)

A value is one corruption at one severity, `at` gives another. For evaluation only: there is nothing to train on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from robust_train.data.corruptions import NAMES, SEVERITIES
from robust_train.data.decode import pixels
from robust_train.data.files.folders import class_folders
from robust_train.data.loader import Allowance, Decoder, Refusal, batches, evenly
from robust_train.data.names import labelled_names
from robust_train.data.pictures import Answered, Pictures
from robust_train.disk import checksum, digest
from robust_train.nouns import Batch, Dataset, Place, Shape
from robust_train.read.errors import ConfigError, DataError, nearest
from robust_train.read.paths import FilePath


def stored(folder: str | Path, classes: int, size: int, order: str | Path | None = None) -> StoredCorruption:
    """What lies in a folder: npy arrays where there is a labels.npy, else folders of image files."""
    if (Path(folder).expanduser() / "labels.npy").exists():
        return StoredArrays(str(folder), classes, size)
    return StoredFolders(str(folder), classes, size, order=None if order is None else str(order))


@dataclass(frozen=True)
class StoredCorruption(Dataset, ABC):
    """One corruption at one severity of a published set."""

    folder: FilePath  # as it was unpacked
    classes: int  # labels run from 0 to classes - 1
    size: int  # side of the images, which are never resized: that would be another benchmark
    corruption: str = NAMES[0]  # as the benchmark calls it: gaussian_noise, ...
    severity: int = 1  # 1 to 5

    harmless: ClassVar[tuple[str, ...]] = ("folder", "order", "workers", "missing")

    @property
    def shape(self) -> Shape:
        """Colour, square."""
        return (3, self.size, self.size)

    @property
    def home(self) -> Path:
        """The folder."""
        return Path(self.folder).expanduser()

    def at(self, corruption: str, severity: int) -> Self:
        """Another corruption, another severity. Raises ConfigError for one that does not exist or does not lie here."""
        present = self.corruptions()
        if corruption not in present:
            raise ConfigError(
                f"{self.folder} holds no {corruption!r}{nearest(corruption, present)} "
                f"(there: {', '.join(present) or 'no corruption at all'})"
            )
        if severity not in SEVERITIES:
            raise ConfigError(f"severity={severity} of {corruption} is not in 1, ..., 5")
        other = replace(self, corruption=corruption, severity=severity)
        other.__dict__["_known"] = self._known
        return other

    @cached_property
    def _known(self) -> dict[Any, Any]:
        """What was found of any corruption and severity, once for all values that `at` made of this one."""
        return {}

    def __reduce__(self) -> Any:
        """Its fields alone travel: 75 listings of 50,000 names do not."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @abstractmethod
    def corruptions(self) -> tuple[str, ...]:
        """Those that lie there, in the benchmark's order."""

    def stamp(self) -> str:
        """What decides verdicts beside `checksums`: where it is another, those that are there are not taken."""
        return ""

    def contents(self) -> dict[str, str]:
        """Checksums and stamp."""
        return {**self.checksums(), "stamp": self.stamp()}

    def prepare(self) -> None:
        """Find the files and their labels. Raises DataError where that fails."""
        self.validation_size()

    def check(self) -> None:
        """Whether files and labels are there and belong together. Raises DataError."""
        self.prepare()

    def train_size(self) -> int:
        """None."""
        return 0

    def names(self) -> list[str]:
        """Numbers: the files do not say what the classes are called."""
        return [str(label) for label in range(self.classes)]

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Refused: such images are for evaluation only."""
        raise ConfigError(f"{self.folder} is for evaluation only. Train on shards: data.use=shards.")


@dataclass(frozen=True)
class StoredArrays(StoredCorruption):
    """CORRUPTION.npy uint8 [5 n, size, size, 3], severity after severity, beside labels.npy [5 n] or [n].

    `sample` is the image's place among the n: the same of every corruption and severity. Arrays are read from disk as
    they are needed.
    """

    def corruptions(self) -> tuple[str, ...]:
        return tuple(name for name in NAMES if (self.home / f"{name}.npy").is_file())

    def validation_size(self) -> int:
        """n."""
        return len(self._labels)

    def checksums(self) -> dict[str, str]:
        """sha256 of the two files."""
        return {name: _checksum(self.home / name) for name in (f"{self.corruption}.npy", "labels.npy")}

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks of `chunk` images, uint8: chunk i goes to rank i mod world; the last may be smaller."""
        count = self.validation_size()
        images = count if limit is None else min(limit, count)
        first = (self.severity - 1) * count
        for start in range(place.rank * chunk, images, place.world * chunk):
            rows = torch.arange(start, min(start + chunk, images))
            cut = np.array(self._images[first + start : first + start + len(rows)])
            targets = torch.from_numpy(self._labels[start : start + len(rows)].astype(np.int64))
            yield Batch(torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous(), targets, rows, rows)

    @cached_property
    def _images(self) -> np.ndarray:
        found, side = self._array(f"{self.corruption}.npy"), self.size
        if found.dtype != np.uint8 or found.shape[1:] != (side, side, 3) or len(found) % len(SEVERITIES):
            raise DataError(
                f"{self.home / self.corruption}.npy is {found.dtype} {list(found.shape)}, not uint8 "
                f"[5 n, {side}, {side}, 3]: five severities of n images. Unpack it anew, or take a network for such."
            )
        return found

    @cached_property
    def _labels(self) -> np.ndarray:
        """Of this severity's n images."""
        found, path = self._array("labels.npy"), self.home / "labels.npy"
        total = len(self._images)
        count = total // len(SEVERITIES)
        if found.ndim != 1 or len(found) not in (count, total):
            raise DataError(f"{path} has {list(found.shape)} labels for {total:,} images. Unpack it anew.")
        labels = found if len(found) == count else found[(self.severity - 1) * count : self.severity * count]
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise DataError(
                f"{path} has labels from {labels.min()} to {labels.max()}, but the network's run from 0 to "
                f"{self.classes - 1}. Give a network for these classes."
            )
        return labels

    def _array(self, name: str) -> np.ndarray:
        path = self.home / name
        try:
            return np.load(path, mmap_mode="r")
        except FileNotFoundError:
            raise DataError(f"{path} does not exist. Name the folder that CIFAR-10-C was unpacked into.") from None
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read ({error}). Unpack it anew.") from error


@dataclass(frozen=True)
class StoredFolders(StoredCorruption):
    """CORRUPTION/SEVERITY/WNID/*.JPEG, as in ImageNet-C and Tiny-ImageNet-C, also below folders such as blur/.

    Labels are the places of the class folders in the order of robust_train.data.files.folders, or what `order` says.
    `sample` is the image's place among those that are judged, sorted by name: the same of every corruption and severity
    that has the same files.
    """

    spread: ClassVar[bool] = True

    order: FilePath | None = (
        None  # classes.json with the label ("index") of each "wnid"; others are left out; null: their order
    )
    workers: int = 0  # processes that decode; 0: the evaluating process itself
    missing: int = 0  # broken images that are allowed before the evaluation stops

    def corruptions(self) -> tuple[str, ...]:
        return tuple(name for name in NAMES if self._found(name) is not None)

    def validation_size(self) -> int:
        """Images that are judged."""
        return len(self._kept.numbers)

    def names(self) -> list[str]:
        """The WordNet ids."""
        found = super().names()
        for wnid, label in self._labels.items():
            found[label] = wnid
        return found

    def checksums(self) -> dict[str, str]:
        """sha256 of the listing: name and bytes of every image."""
        return {f"{self.corruption}/{self.severity}": self._pictures.sums[0]}

    def stamp(self) -> str:
        """Of the labels, and of when the images were written."""
        return digest(f"{sorted(self._labels.items())} {self._pictures.sums[1]}")

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks of `chunk` images, uint8: chunk i goes to rank i mod world; the last may be smaller.

        Where a limit is set, so many images are taken evenly over the set, which lies in the order of classes.
        """
        total = self.validation_size()
        tasks = evenly(place, chunk, total, limit)
        decoder = AsStored(self._kept, None, self.size, 3, 1.0, self.classes)
        name = f"{self.corruption}/{self.severity}"
        return batches(decoder, tasks, place, self.workers, (name,).__getitem__, Allowance(self.missing, total))

    @property
    def _pictures(self) -> Pictures:
        """Listed once for each corruption and severity; names that several have alike are held once."""
        at = (self.corruption, self.severity)
        if at not in self._known:
            listed = self._listed()
            alike = (one for one in self._known.values() if isinstance(one, Pictures) and one.keys == listed.keys)
            first = next(alike, None)
            self._known[at] = listed if first is None else Pictures(listed.place, first.keys)
        found: Pictures = self._known[at]
        return found

    def _listed(self) -> Pictures:
        found = self._found(self.corruption)
        if found is None:
            raise DataError(
                f"{self.folder} holds no folder {self.corruption}/{self.severity} of images. Unpack it there."
            )
        return Pictures.below(found / str(self.severity))

    @property
    def _kept(self) -> Answered:
        at = ("kept", id(self._pictures.keys), self.order)  # the names of all that have the same are one object
        if at not in self._known:
            found = self._judged()
            self._known[at] = found.numbers, found.answers
        return Answered(self._pictures, *self._known[at])

    def _judged(self) -> Answered:
        labels = self._labels
        ids = ((number, key.split("/")[0]) for number, key in enumerate(self._pictures.keys))
        found = [(number, labels[wnid]) for number, wnid in ids if wnid in labels]
        if not found:
            raise DataError(f"{self._pictures.place} holds no image of the classes that {self.order} names.")
        return Answered(self._pictures, tuple(n for n, _ in found), tuple((label,) for _, label in found))

    @cached_property
    def _labels(self) -> dict[str, int]:
        if self.order is not None:
            return _labels_of(Path(self.order).expanduser(), self.classes)
        ids = class_folders(self._pictures.place)
        if len(ids) != self.classes:
            raise DataError(
                f"{self._pictures.place} holds images in {len(ids)} class folders, but the network has "
                f"{self.classes:,} classes: labels would be others. Unpack the whole set, or name a classes.json that "
                "gives each WordNet id its label."
            )
        return {wnid: label for label, wnid in enumerate(ids)}

    def _found(self, corruption: str) -> Path | None:
        """The corruption's folder: here, or one folder below, where an archive such as blur.tar left its own."""
        at = ("folder", corruption, self.severity)
        if self._known.get(at) is None:  # one that is not there may come
            places = [self.home / corruption, *sorted(self.home.glob(f"*/{corruption}"))]
            self._known[at] = next((place for place in places if (place / str(self.severity)).is_dir()), None)
        found: Path | None = self._known[at]
        return found


@dataclass(frozen=True)
class AsStored(Decoder):
    """Decoding without resizing or cutting."""

    def finished(self, image: Image, seed: int) -> Tensor:
        """uint8 [3, size, size]. Refusal for an image of another size."""
        if image.size != (self.size, self.size):
            raise Refusal(
                0,
                f"holds an image of {image.width}x{image.height} pixels, but the network takes "
                f"{self.size}x{self.size}: resizing would make another benchmark of it. Take a network for their size.",
            )
        return pixels(image)


def _checksum(path: Path) -> str:
    """sha256 of a file, read once for its five severities."""
    stat = path.stat()
    return _checksum_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _checksum_of(path: Path, size: int, written: int) -> str:
    return checksum(path)


def _labels_of(path: Path, classes: int) -> dict[str, int]:
    """The label of each class folder by a classes.json."""
    known = labelled_names(path, folders=True)
    strange = next((pair for pair in known if not 0 <= pair[0] < classes), None)
    if strange is not None:
        raise DataError(f"{path} gives {strange[1]} the label {strange[0]}, but labels run from 0 to {classes - 1}.")
    return {name: label for label, name in known}
