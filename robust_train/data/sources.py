"""Where images come from before they are shards: folders, ImageNet's flat validation set, torchvision, the digits."""

from __future__ import annotations

import inspect
import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from robust_train.data.decode import Undecodable, decode
from robust_train.data.files.folders import Found, class_folders, images_below, in_order, is_image, key_of, keys_of
from robust_train.data.write import Sample, sample
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.text import pairs_of
from robust_train.vision import ensure_torchvision_importable

COLUMNS = (("path", "file", "filename", "image", "name", "key"), ("label", "class", "target"))
LISTS = "Write path,label on each line; paths are from the list's own folder on, or whole."
JPEG_QUALITY = 95  # of images that are resized
INTERPOLATION = "bicubic"  # of the same, antialiased


@dataclass(frozen=True)
class Source(ABC):
    """Labelled images by number.

    place: a folder. split: which part of the set. resize: the longest that a short side may be, in pixels, or None.
    """

    place: str
    split: str
    resize: int | None = None

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes; the place in the list is the label."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def file(self, number: int) -> tuple[str, str, bytes, int]:
        """(key, extension, bytes, label) of an image."""

    def listing(self) -> list[str]:
        """Names of the images in the order of their numbers, where they are files."""
        return []

    def left_out(self) -> list[str]:
        """What lies there and is no image of it, a line for each reason."""
        return []

    def sample(self, number: int) -> Sample:
        """The image as it is stored: its own bytes, unless it is to be resized. Undecodable, with its name."""
        try:
            key, extension, file, label = self.file(number)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise Undecodable(f"{error.filename}: {error.strerror}") from error
        try:
            image = decode(file, 3)
        except Undecodable as error:
            raise Undecodable(f"{key}.{extension}: {error}") from error
        if self.resize is None or min(image.size) <= self.resize:
            return sample(key, extension, file, label)
        from PIL.Image import Resampling

        how = Resampling[INTERPOLATION.upper()]
        scale = self.resize / min(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), how)
        out = io.BytesIO()
        small.save(out, "jpeg", quality=JPEG_QUALITY)
        return sample(key, "jpg", out.getvalue(), label)


@dataclass(frozen=True)
class ClassFolders(Source):
    """A folder of folders, one a class: see robust_train.data.files.folders for what counts, and in which order.

    names: of the classes in the order of labels, where the folder may lack some of them; empty: its own folders.
    """

    names: tuple[str, ...] = ()

    @cached_property
    def classes(self) -> list[str]:
        return list(_known(self.names, self._folders, self.place))

    def __len__(self) -> int:
        return len(self._found.files)

    def path(self, number: int) -> Path:
        """The file of an image."""
        return self._found.files[number]

    def label(self, number: int) -> int:
        """Its class."""
        return self._labels[self.path(number).relative_to(self.place).parts[0]]

    def file(self, number: int) -> tuple[str, str, bytes, int]:
        path = self.path(number)
        return self._keys[number], path.suffix[1:].lower(), path.read_bytes(), self.label(number)

    def listing(self) -> list[str]:
        return [str(path.relative_to(self.place)) for path in self._found.files]

    def left_out(self) -> list[str]:
        return self._found.said()

    @cached_property
    def _folders(self) -> list[str]:
        return class_folders(Path(self.place))

    @cached_property
    def _found(self) -> Found:
        found, order = images_below(Path(self.place), self._folders), self._labels
        return replace(found, files=tuple(sorted(found.files, key=lambda p: order[p.relative_to(self.place).parts[0]])))

    @cached_property
    def _keys(self) -> list[str]:
        return keys_of(self._found.files, Path(self.place))

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}


@dataclass(frozen=True)
class ListedFiles(Source):
    """A table of image files and their classes: path,label in a .csv or .tsv, with or without these words above.

    place: the table. Paths are from its folder on, or whole. A label is a number from 0 where all are numbers, else a
    name, and labels then follow the order of class folders. names: as of ClassFolders.
    """

    names: tuple[str, ...] = ()

    @cached_property
    def classes(self) -> list[str]:
        said = {name for _, name in self._pairs}
        if self.numbered:
            return [str(label) for label in range(max(len(self.names), 1 + max(map(int, said))))]
        return list(_known(self.names, in_order(said), self.place))

    @property
    def numbered(self) -> bool:
        """Whether its labels are numbers."""
        return all(name.isascii() and name.isdecimal() for _, name in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def path(self, number: int) -> Path:
        """The file of an image."""
        return Path(self.place).parent / self._pairs[number][0]

    def label(self, number: int) -> int:
        """Its class."""
        name = self._pairs[number][1]
        return self._labels[str(int(name)) if name.isdecimal() and name not in self._labels else name]

    def file(self, number: int) -> tuple[str, str, bytes, int]:
        path = self.path(number)
        return self._keys[number], path.suffix[1:].lower(), path.read_bytes(), self.label(number)

    def listing(self) -> list[str]:
        return [f"{name},{label}" for name, label in self._pairs]

    @cached_property
    def _pairs(self) -> list[tuple[str, str]]:
        found = pairs_of(Path(self.place), "the list of images", LISTS, COLUMNS)
        rows = Counter(name for name, _ in found)
        twice = next((name for name, count in rows.items() if count > 1), None)
        if twice is not None:
            raise DataError(f"the list of images {self.place} names {twice} {rows[twice]} times. Leave one line.")
        for name, _ in found:
            path = Path(self.place).parent / name
            if not is_image(path.name) or not path.is_file():
                why = "is no file" if is_image(path.name) else "is called like no image"
                raise DataError(f"the list of images {self.place}: {path} {why}. {LISTS}")
        return found

    @cached_property
    def _keys(self) -> list[str]:
        """Paths without what leads out of the table's folder; an archive's names must not."""
        names = [key_of(name.replace("\\", "/")) for name, _ in self._pairs]
        keys = ["/".join(part for part in name.split("/") if part not in ("", ".", "..")) for name in names]
        counts = Counter(keys)
        return [key if counts[key] == 1 else f"{key}_{number}" for number, key in enumerate(keys)]

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}


def _known(names: Sequence[str], own: Sequence[str], place: str) -> Sequence[str]:
    """The names of classes in the order of labels: those given, of which its own must all be, else its own."""
    strange = sorted(set(own) - set(names)) if names else []
    if strange:
        raise DataError(
            f"{place} holds class {strange[0]!r}, which is none of the {len(names):,} classes ({', '.join(names[:3])}, "
            "...): labels would be others. Name the same classes in training and validation, or write classes.json "
            "into the folder."
        )
    return names or own


@dataclass(frozen=True)
class Torchvision(Source):
    """A data set of torchvision by its class's name: CIFAR10, CIFAR100, SVHN, ... Stored as lossless PNG."""

    name: str = ""
    download: bool = False

    @cached_property
    def classes(self) -> list[str]:
        named = getattr(self._set, "classes", None)
        return [str(name) for name in named] if named else [str(label) for label in range(max(self._labels) + 1)]

    def __len__(self) -> int:
        return len(self._set)

    def file(self, number: int) -> tuple[str, str, bytes, int]:
        out = io.BytesIO()
        image, label = self._set[number]
        image.save(out, "png")
        return f"{self.split}_{number:06d}", "png", out.getvalue(), int(label)

    @cached_property
    def _labels(self) -> list[int]:
        found = getattr(self._set, "targets", getattr(self._set, "labels", None))
        return [int(label) for label in found] if found is not None else [int(label) for _, label in self._set]

    @cached_property
    def _set(self) -> Any:
        ensure_torchvision_importable()
        from torchvision import datasets

        known = [name for name in datasets.__all__ if not name.endswith(("Folder", "Dataset"))]
        if self.name not in known:
            raise ConfigError(f"torchvision has no data set {self.name!r} (known: {', '.join(sorted(known))})")
        made = getattr(datasets, self.name)
        takes = inspect.signature(made).parameters
        trains = self.split.startswith("train")
        options: dict[str, Any] = {"download": self.download} if "download" in takes else {}
        if "train" in takes:
            options["train"] = trains
        elif "split" in takes:
            options["split"] = "train" if trains else {"validation": "test"}.get(self.split, self.split)
        try:
            return made(self.place, **options)
        except (RuntimeError, ValueError, OSError) as error:
            remedy = "" if self.download else " Put it there, or add --download."
            raise DataError(
                f"torchvision cannot read {self.name} ({self.split}) in {self.place}: {error}.{remedy}"
            ) from error


@dataclass(frozen=True)
class DigitsSource(Source):
    """scikit-learn's digits, as the data set `digits` has them."""

    @property
    def classes(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self._samples)

    def file(self, number: int) -> tuple[str, str, bytes, int]:
        one = self._samples[number]
        return str(one["__key__"]), "png", bytes(one["png"]), int(one["cls"])  # type: ignore[arg-type]

    @cached_property
    def _samples(self) -> list[Sample]:
        from robust_train.data.digits import samples, split

        numbers = split()
        if self.split not in numbers:
            raise ConfigError(f"digits have no split {self.split!r}: name train or validation")
        return list(samples(numbers[self.split]))
