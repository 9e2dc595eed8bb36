"""ImageNet's classes: their ids and names, those of ImageNet-A and -R, the reassessed labels, ObjectNet's objects.

All is read from files, which go by the names that timm gives them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from robust_train.read.errors import DataError, nearest
from robust_train.read.paths import FilePath
from robust_train.read.text import json_of, lines_of

Subset = Literal["a", "r"]
SYNSETS, NAMES, INDEX = "imagenet_synsets.txt", "imagenet_synset_to_lemma.txt", "imagenet_class_index.json"
REAL = ("imagenet_real_labels.json", "real.json")  # the second is its name where it was published
OBJECTS, FOLDERS = "objectnet_to_imagenet_1k.json", "folder_to_objectnet_label.json"

REMEDY = "Take the published file, or name no folder: timm's own files serve."


@dataclass(frozen=True)
class LabelFiles:
    """What is known of ImageNet's classes, by the files in a folder; null: those that come with timm.

    Every index is a place in the list of WordNet ids, sorted, and so in a network's logits. Raises DataError for a file
    that is absent or not what its name says.
    """

    folder: FilePath | None = None

    @cached_property
    def synsets(self) -> tuple[str, ...]:
        """The WordNet id of each class: n01440764 is 0, of 1,000."""
        found = tuple(self._lines(self._file(SYNSETS)))
        if not found or list(found) != sorted(set(found)):
            raise DataError(
                f"{self._file(SYNSETS)} is no sorted list of WordNet ids, each once: labels would be others. Take "
                "timm's file of that name."
            )
        return found

    @cached_property
    def index(self) -> dict[str, int]:
        """The class of each WordNet id."""
        return {synset: label for label, synset in enumerate(self.synsets)}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each class is called, all its words: "tench, Tinca tinca"."""
        path = self._file(NAMES, INDEX)
        if path.name == INDEX:
            try:
                said = {str(one[0]): str(one[1]) for one in _json(path, dict).values()}
            except (TypeError, IndexError, KeyError) as error:
                raise DataError(f'{path} is no {{"0": [WordNet id, name], ...}} ({error}). {REMEDY}') from error
        else:
            pairs = (line.partition("\t") for line in self._lines(path))
            said = {synset: name for synset, _, name in pairs}
        absent = [synset for synset in self.synsets if synset not in said]
        if absent:
            raise DataError(f"{path} does not name {absent[0]} ({len(absent):,} classes in all). Take the whole file.")
        return tuple(said[synset] for synset in self.synsets)

    def subset(self, which: Subset) -> tuple[int, ...]:
        """The classes of ImageNet-A ("a") or -R ("r"), ascending: 200 each."""
        path = self._file(f"imagenet_{which}_indices.txt")
        try:
            found = tuple(int(line) for line in self._lines(path))
        except ValueError as error:
            raise DataError(f"{path} is no list of class numbers, one a line: {error}. Take timm's file.") from error
        strange = [label for label in found if not 0 <= label < len(self.synsets)]
        if strange or not found:
            raise DataError(
                f"{path}: {strange[0] if strange else 'nothing'} is no class: they run from 0 to "
                f"{len(self.synsets) - 1}. Take the file that belongs to {self._file(SYNSETS)}."
            )
        return tuple(sorted(set(found)))

    @cached_property
    def real(self) -> tuple[tuple[int, ...], ...]:
        """The right classes of ILSVRC2012_val_00000001 and on, by Beyer et al. 2020 (arXiv 2006.07159); may be none."""
        path = self._file(*REAL)
        try:
            found = tuple(tuple(int(label) for label in labels) for labels in _json(path, list))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} is no list of lists of classes: {error}. Take the published file.") from error
        strange = [label for labels in found for label in labels if not 0 <= label < len(self.synsets)]
        if strange:
            raise DataError(
                f"{path} names class {strange[0]}, but they run from 0 to {len(self.synsets) - 1}. Take the published "
                "file."
            )
        return found

    def objects(self, places: list[Path]) -> dict[str, tuple[int, ...]]:
        """ObjectNet's folders and the classes that each stands for; none for an object that ImageNet does not have.

        places: where its two mapping files may lie; the first that has them serves. An object's ImageNet names are
        separated by "; " and are those of `names`, whole.
        """
        home = next((place for place in places if (place / OBJECTS).is_file() and (place / FOLDERS).is_file()), None)
        if home is None:
            looked = ", ".join(str(place) for place in places)
            raise DataError(
                f"ObjectNet's {OBJECTS} and {FOLDERS} are missing (looked in {looked}). They come with ObjectNet, in "
                "its folder mappings: put that beside its folder images, or both files among the label files."
            )
        labelled: dict[str, list[int]] = {}
        for label, name in enumerate(self.names):
            labelled.setdefault(name, []).append(label)
        classes: dict[str, tuple[int, ...]] = {}
        for thing, names in _json(home / OBJECTS, dict).items():
            found = []
            for name in str(names).split("; "):
                if len(labelled.get(name, ())) != 1:  # "crane" is a bird and a machine
                    many = "the name of several classes" if name in labelled else "no class of ImageNet"
                    raise DataError(
                        f"{home / OBJECTS}: {thing!r} stands for {name!r}, which is {many}{nearest(name, labelled)}. "
                        "Take the file as it came with ObjectNet."
                    )
                found += labelled[name]
            classes[thing] = tuple(found)
        folders = {str(folder): str(thing) for folder, thing in _json(home / FOLDERS, dict).items()}
        absent = sorted(set(classes) - set(folders.values()))
        if absent:
            raise DataError(
                f"{home / FOLDERS} names no folder of {absent[0]!r}, which {OBJECTS} has. Take both files from one "
                "ObjectNet."
            )
        return {folder: classes.get(thing, ()) for folder, thing in folders.items()}

    @cached_property
    def home(self) -> Path:
        """The folder of the files."""
        if self.folder is not None:
            found = Path(self.folder).expanduser()
            if not found.is_dir():
                raise DataError(
                    f"the folder of label files {found} does not exist. Name another, or none: timm's serve."
                )
            return found
        timm = importlib.util.find_spec("timm")  # found, not imported: only its files are wanted
        if timm is None or timm.origin is None:
            raise DataError("label files are missing: install timm, whose files serve, or name a folder of them")
        return Path(timm.origin).parent / "data" / "_info"

    def _file(self, *names: str) -> Path:
        """The first that is there of a file's names."""
        found = next((self.home / name for name in names if (self.home / name).is_file()), None)
        if found is None:
            raise DataError(
                f"{self.home} has no {' or '.join(names)}. Put it there, or name no folder: timm's own files serve."
            )
        return found

    def _lines(self, path: Path) -> list[str]:
        return lines_of(path, "the label file", REMEDY)


def _json(path: Path, kind: type) -> Any:
    return json_of(path, "the label file", REMEDY, kind)
