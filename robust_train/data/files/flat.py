"""ImageNet's validation images as they are given out: all in one folder, and a file that says what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from robust_train.data.files.folders import Found, images_below, key_of, keys_of
from robust_train.data.sources import COLUMNS, Source
from robust_train.read.errors import DataError
from robust_train.read.text import lines_of, pairs_of

TRUTHS = "--ground-truth (ILSVRC2012_validation_ground_truth.txt, LOC_val_solution.csv, or NAME and class on each line)"


@dataclass(frozen=True)
class FlatValidation(Source):
    """ImageNet's validation folder of 50,000 files and the file of their classes.

    ground_truth: a line for each image in the order of names, or NAME and class, or Kaggle's LOC_val_solution.csv. A
    class is a WordNet id, a number from 0 (its place in `names`), or one of the development kit's numbers from 1, which
    follow an order of their own and are read by the kit's meta.mat, beside the file. names: WordNet ids in the order of
    labels; empty: those of the file, sorted.
    """

    ground_truth: str = ""
    names: tuple[str, ...] = ()

    @cached_property
    def classes(self) -> list[str]:
        said = set(self._said)
        if self.names:
            return list(self.names)
        if all(name.isdecimal() for name in said):
            return [str(label) for label in range(max(map(int, said)) + 1)]
        return sorted(said)

    def __len__(self) -> int:
        return len(self._paths)

    def file(self, number: int) -> tuple[str, str, bytes, int]:
        path, said = self._paths[number], self._said[number]
        return self._keys[number], path.suffix[1:].lower(), path.read_bytes(), self._labels[said]

    def listing(self) -> list[str]:
        _ = self._labels
        return [f"{path.name} {said}" for path, said in zip(self._paths, self._said, strict=True)]

    def left_out(self) -> list[str]:
        return self._found.said()

    @cached_property
    def _found(self) -> Found:
        return images_below(Path(self.place))

    @property
    def _paths(self) -> tuple[Path, ...]:
        return self._found.files

    @cached_property
    def _keys(self) -> list[str]:
        return keys_of(self._paths, Path(self.place))

    @cached_property
    def _labels(self) -> dict[str, int]:
        labels = {str(i): i for i in range(len(self.classes))} | {name: i for i, name in enumerate(self.classes)}
        strange = sorted(set(self._said) - set(labels))
        if strange:
            raise DataError(
                f"{self.ground_truth}: {len(strange)} classes, {strange[0]!r} among them, are not in the list of "
                f"{len(self.classes)} classes. Give the list that belongs to the file with --classes."
            )
        return labels

    @cached_property
    def _said(self) -> list[str]:
        """The class of each image, in the order of names."""
        path = Path(self.ground_truth).expanduser()
        if not self.ground_truth or not path.is_file():
            raise DataError(f"the classes of the images in {self.place} are missing: name their file with {TRUTHS}")
        pairs = _truths(path)
        if all(name == "" for name, _ in pairs):
            if len(pairs) != len(self._paths):
                raise DataError(
                    f"{path} has {len(pairs):,} lines, but {self.place} has {len(self._paths):,} images. Give the file "
                    "that belongs to the folder."
                )
            said = [name for _, name in pairs]
        else:
            known: dict[str, str] = {}
            for name, found in pairs:
                key = key_of(Path(name).name)
                if known.setdefault(key, found) != found:
                    raise DataError(f"{path} says of {name} that it is {known[key]}, and that it is {found}.")
            names = [key_of(image.name) for image in self._paths]
            absent = [image.name for image, name in zip(self._paths, names, strict=True) if name not in known]
            if absent:
                raise DataError(f"{path} does not say the class of {absent[0]} ({len(absent):,} such images in all)")
            said = [known[name] for name in names]
        return _from_the_kit(path, said) if all(name.isdecimal() for name in said) else said


def _truths(path: Path) -> list[tuple[str, str]]:
    """(name or "", class) of each line of a ground truth, in any of its forms."""
    what, remedy = "the ground truth", f"Give {TRUTHS}."
    lines = lines_of(path, what, remedy)
    if lines[0].startswith("ImageId,"):
        pairs = pairs_of(path, what, remedy, (("imageid",), ("predictionstring",)))
        return [(name, found.split()[0]) for name, found in pairs]
    if all("," in line or "\t" in line for line in lines):
        return pairs_of(path, what, remedy, COLUMNS)
    split = [line.rsplit(None, 1) for line in lines]
    bare = [len(words) == 1 for words in split]
    if any(bare) and not all(bare):
        raise DataError(f"{what} {path}: {lines[bare.index(True)]!r} has one word, and other lines have more. {remedy}")
    return [(words[0] if len(words) > 1 else "", words[-1]) for words in split]


def _from_the_kit(path: Path, said: Sequence[str]) -> list[str]:
    """Numbers from 0 as they are; the development kit's from 1 as the WordNet ids that its meta.mat gives them."""
    meta = path.with_name("meta.mat")
    if meta.exists():
        from scipy.io import loadmat

        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        ids = {
            str(int(number)): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
        strange = next((number for number in said if str(int(number)) not in ids), None)
        if strange is not None:
            raise DataError(f"{path} says class {strange}, which {meta} does not know. Give both files from one kit.")
        return [ids[str(int(number))] for number in said]
    if "0" not in said:
        raise DataError(
            f"{path} numbers its classes from 1, as ImageNet's development kit does in an order of its own (not that "
            f"of the sorted WordNet ids). Put the kit's meta.mat beside it: {meta}"
        )
    return list(said)
