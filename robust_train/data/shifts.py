"""Data sets of shifts: ImageNet-A, -R, -Sketch, -V2, ObjectNet, Stylized-ImageNet, ReaL; and ImageNet's validation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust_train.data.files.flat import FlatValidation
from robust_train.data.imagenet import Subset
from robust_train.data.shift import Shift
from robust_train.read.errors import ConfigError, nearest
from robust_train.read.paths import FilePath
from robust_train.read.registry import datasets

VARIANTS = {"matchedfrequency": "matched-frequency", "threshold0.7": "threshold-0.7", "topimages": "top-images"}
VALIDATION = re.compile(r"val_(\d{8})")  # in a file's name: which of ImageNet's 50,000 validation images it is


@dataclass(frozen=True)
class Synsets(Shift):
    """Images in folders named by WordNet id."""

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The class that the folder names; of a shard without folders in its keys, its label."""
        folder, index = key.rpartition("/")[0], self.files.index
        if folder in index:
            return (index[folder],)
        if self._said(label):
            return (int(label),)  # type: ignore[arg-type]
        raise self._stranger(key)


@dataclass(frozen=True)
class SomeClasses(Synsets):
    """Images of some classes, in folders named by WordNet id; only the logits of these classes are compared."""

    which: ClassVar[Subset]

    @property
    def allowed(self) -> Tensor:
        """The classes of the set."""
        return torch.tensor(self._classes)

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The class that the folder names. A shard's label will not do: it may count from 0 to 199, or to 999."""
        (found,) = super().answers(key, None)
        if found not in self._classes:
            why = f"and {self.files.synsets[found]} is none of the {len(self._classes)} classes of {self.label}"
            raise self._stranger(key, why)
        return (found,)

    @cached_property
    def _classes(self) -> tuple[int, ...]:
        return self.files.subset(self.which)


@datasets.register("imagenet-a")
@dataclass(frozen=True)
class ImageNetA(SomeClasses):
    """ImageNet-A: 7,500 photographs that a ResNet-50 got wrong, of 200 classes; logits of these are compared.

    Hendrycks et al. 2021 (arXiv 1907.07174). Folders n01498041, ...
    """

    which: ClassVar[Subset] = "a"

    examples = "- {folder: images}"


@datasets.register("imagenet-r")
@dataclass(frozen=True)
class ImageNetR(SomeClasses):
    """ImageNet-R: 30,000 paintings, toys, cartoons and the like, of 200 classes; logits of these are compared.

    Hendrycks et al. 2021 (arXiv 2006.16241). Folders n01443537, ...
    """

    which: ClassVar[Subset] = "r"

    examples = "- {folder: images}"


@datasets.register("imagenet-sketch")
@dataclass(frozen=True)
class ImageNetSketch(Synsets):
    """ImageNet-Sketch: 50,889 drawings of ImageNet's classes, in folders named by WordNet id.

    Wang et al. 2019 (arXiv 1905.13549).
    """

    examples = "- {folder: images}"


@datasets.register("stylized-imagenet")
@dataclass(frozen=True)
class StylizedImageNet(Synsets):
    """Stylized-ImageNet: the validation images in the texture of paintings, in folders named by WordNet id.

    Geirhos et al. 2019 (arXiv 1811.12231). Its images are 224 pixels wide: crop=1 judges them whole.
    """

    examples = "- {folder: images}"


@datasets.register("imagenet-v2")
@dataclass(frozen=True)
class ImageNetV2(Shift):
    """ImageNet-V2: a validation set collected anew, 10,000 images, in folders 0 to 999.

    Recht et al. 2019 (arXiv 1902.10811). A folder's class is its number: sorted as text they would be 0, 1, 10, 100,
    and nearly all labels wrong. Each of its three variants is a folder of its own.
    """

    among: ClassVar[str] = "class numbers, 0 to 999"

    examples = "- {folder: images}"

    @property
    def label(self) -> str:
        """With the variant, where the folder's name says one."""
        variant = v2_variant(self.folder)
        return f"{self.use}/{variant}" if variant else self.use

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The number that the folder is named by; of a shard without folders in its keys, its label."""
        folder = key.rpartition("/")[0]
        if folder.isdecimal() and int(folder) < self.classes:
            return (int(folder),)
        if self._said(label):
            return (int(label),)  # type: ignore[arg-type]
        raise self._stranger(key)


@datasets.register("objectnet")
@dataclass(frozen=True)
class ObjectNet(Shift):
    """ObjectNet: things in odd poses and places, 313 kinds; the images of those 113 that ImageNet has are judged.

    Barbu et al. 2019. All 1,000 logits are compared; the answer is right if it is one of the classes that the object
    stands for. The red border of 2 pixels is cut off. Folders are named by object; two mapping files come with them.
    """

    border: ClassVar[int] = 2
    among: ClassVar[str] = "objects, as in folder_to_objectnet_label.json"

    examples = "- {folder: images}"

    @property
    def home(self) -> Path:
        """The folder itself, or `images` in it."""
        inside = super().home / "images"
        return inside if inside.is_dir() else super().home

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The classes that the object stands for."""
        folder = key.rpartition("/")[0]
        if folder not in self._objects:
            raise self._stranger(key)
        return self._objects[folder]

    @cached_property
    def _objects(self) -> dict[str, tuple[int, ...]]:
        places = [] if self.labels is None else [self.files.home]
        return self.files.objects([*places, self.home / "mappings", self.home.parent / "mappings"])


@datasets.register("imagenet-real")
@dataclass(frozen=True)
class ImageNetReal(Shift):
    """ImageNet's validation images with reassessed labels (ReaL): several may be right, and 3,163 images have none.

    Beyer et al. 2020 (arXiv 2006.07159). Class folders, a flat folder or shards: the class is found by the number in
    the file's name, ILSVRC2012_val_00000001.
    """

    among: ClassVar[str] = "anything: only file names such as ILSVRC2012_val_00000001.JPEG count"

    examples = "- {folder: images}"

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """Those of the image's number; none where nobody knows."""
        found = VALIDATION.search(key)
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(self.files.real):
            raise self._stranger(key, f"which is none of the {len(self.files.real):,} validation images by its name")
        return self.files.real[number - 1]


@datasets.register("imagenet")
@dataclass(frozen=True)
class ImageNet(Synsets):
    """ImageNet's validation images with their own labels: what shifts are compared with.

    Class folders named by WordNet id, a flat folder with `ground_truth`, or shards.
    """

    harmless: ClassVar[tuple[str, ...]] = (*Synsets.harmless, "ground_truth")
    among: ClassVar[str] = "WordNet ids such as n01440764 (for a flat folder give ground_truth)"

    ground_truth: FilePath | None = None  # of a flat folder: a class a line, or NAME and class, or LOC_val_solution.csv
    only: Subset | None = None  # a, r: the images and logits of ImageNet-A's or -R's 200 classes alone

    examples = "- {folder: images}"

    @property
    def label(self) -> str:
        """With the classes, where they are not all."""
        return self.use if self.only is None else f"{self.use}/200-{self.only}"

    @property
    def allowed(self) -> Tensor | None:
        """The classes of `only`."""
        return None if self.only is None else torch.tensor(self._classes)

    def answers(self, key: str, label: int | None) -> tuple[int, ...]:
        """The class by folder, ground truth or shard; none outside `only`."""
        if self.ground_truth is not None:
            label = self._truths.get(key.rpartition("/")[2], label)
        (found,) = super().answers(key, label)
        return (found,) if self.only is None or found in self._classes else ()

    @cached_property
    def _classes(self) -> tuple[int, ...]:
        return () if self.only is None else self.files.subset(self.only)

    @cached_property
    def _truths(self) -> dict[str, int]:
        said = FlatValidation(str(self.home), "validation", None, self.ground_truth or "", self.files.synsets).listing()
        pairs = [line.rsplit(" ", 1) for line in said]
        return {name: int(found) if found.isdecimal() else self.files.index.get(found, -1) for name, found in pairs}


SHIFTS = (
    "imagenet-a",
    "imagenet-r",
    "imagenet-sketch",
    "imagenet-v2",
    "objectnet",
    "stylized-imagenet",
    "imagenet-real",
)


def shifts(name: str, folder: str, labels: str | None = None, **fields: Any) -> tuple[Shift, ...]:
    """The shifts called `name` at `folder`: one, or for a folder that holds several variants of ImageNet-V2, each.

    fields: those of Shift. Raises ConfigError for an unknown name or field.
    """
    if name not in SHIFTS:
        raise ConfigError(f"{name!r} is no shift{nearest(name, SHIFTS)} (known: {', '.join(SHIFTS)})")
    places = v2_folders(Path(folder).expanduser()) if name == "imagenet-v2" else []
    try:
        return tuple(datasets[name](place, labels, **fields) for place in places or [folder])  # type: ignore[misc,call-arg]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} at {folder}: {error}") from error


def v2_variant(folder: str) -> str | None:
    """What a folder of ImageNet-V2 is by its name: matched-frequency, threshold-0.7 or top-images."""
    name = folder.rstrip("/").lower().replace("-", "").replace("_", "")
    return next((variant for word, variant in VARIANTS.items() if word in name.rpartition("/")[2]), None)


def v2_folders(folder: Path) -> list[str]:
    """The variants that lie in a folder; none where it is one itself."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [str(path) for path in inside if v2_variant(str(path))]
