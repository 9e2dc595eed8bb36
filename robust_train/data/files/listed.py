"""A file of image names, one a line, such as RobustBench's: which samples it means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from robust_train.data.files.folders import key_of
from robust_train.read.errors import DataError
from robust_train.read.text import lines_of

REMEDY = "Write an image's name a line: FOLDER/NAME.png, or NAME.png where no two images have that name."


def chosen(path: Path, keys: Iterable[str], where: str) -> np.ndarray:
    """int64 [n]: the samples that a list names, in its order. keys: of all samples, in order; where: they lie.

    A name means its path: of name and key the shorter must be the end of the longer, folder by folder, so that
    val/n01440764/a.JPEG is n01440764/a, and a too where keys have no folders. Endings of images do not count. Raises
    DataError for a name that no image or several have, and for an image that is named twice.
    """
    lines = [line.replace("\\", "/") for line in lines_of(path, "the list of images", REMEDY)]
    named: dict[str, list[tuple[list[str], int]]] = {}
    for sample, key in enumerate(keys):
        parts = _parts(key)
        named.setdefault(parts[-1], []).append((parts, sample))
    found: dict[int, str] = {}
    absent = []
    for line in lines:
        parts = _parts(key_of(line))
        fits = [(own, sample) for own, sample in named.get(parts[-1], ()) if _agree(parts, own)]
        longest = max((_shared(parts, own) for own, _ in fits), default=0)
        fits = [(own, sample) for own, sample in fits if _shared(parts, own) == longest]
        if not fits:
            absent.append(line)
            continue
        if len(fits) > 1:
            names = " and ".join("/".join(own) for own, _ in fits[:2])
            raise DataError(f"{path}: {line!r} is the name of {len(fits)} images, {names} among them. {REMEDY}")
        sample = fits[0][1]
        if sample in found:
            raise DataError(f"{path} names an image twice: {found[sample]!r} and {line!r}. Leave one out.")
        found[sample] = line
    if absent:
        raise DataError(
            f"{path} lists {len(lines):,} images, and {len(absent):,} of them are not in {where}, {absent[0]!r} first: "
            f"name the whole validation set, whose keys are the files' names. {REMEDY}"
        )
    return np.array(list(found), dtype=np.int64)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")] or [""]


def _shared(one: list[str], other: list[str]) -> int:
    return min(len(one), len(other))


def _agree(one: list[str], other: list[str]) -> bool:
    count = _shared(one, other)
    return one[-count:] == other[-count:]
