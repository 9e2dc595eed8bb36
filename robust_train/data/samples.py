"""Samples as they lie in a tar: consecutive members of one key, KEY.jpg beside KEY.cls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from robust_train.data.files.folders import IMAGES
from robust_train.read.errors import DataError

LABELS = ("cls", "json")
LABEL = 1 << 20  # bytes that one may have
PLACES = {ending: place for place, ending in enumerate(IMAGES)}  # of several images the first in this order
EXTRA = ".npy"  # KEY.NAME.npy
NO_LABEL, NOT_A_LABEL = -(2**62), 1 - 2**62  # stand where a label should, far from any a file may hold
FAULTS = {NO_LABEL: "has no .cls or .json entry", NOT_A_LABEL: "has a label that is no integer"}
NO_IMAGE = f"has no image ({', '.join(IMAGES[:8])}, ...)"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Record:
    """One sample as read: undecoded.

    shard, number: which shard of the list, and which sample of it. key: its name there. image: the file's bytes, None
    where there is none. label: the integer, or NO_LABEL or NOT_A_LABEL. extra: files beside it, by name.
    """

    shard: int
    number: int
    key: str
    image: bytes | None
    label: int
    extra: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """What is wrong with it before decoding; empty where nothing is."""
        lacking = next((f"has no .{name}{EXTRA} entry" for name, value in self.extra.items() if value is None), "")
        return FAULTS.get(self.label, NO_IMAGE if self.image is None else lacking)


def grouped(members: Iterable[tuple[str, Value]]) -> Iterator[tuple[str, dict[str, Value]]]:
    """(file name, value) of consecutive members to (key, {extension: value}).

    As in WebDataset the key ends at the first dot of the file's own name, and hidden and `__meta__` files are none.
    """
    key, parts = "", dict[str, Value]()
    for name, value in members:
        folder, _, file = name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot or (stem.startswith("__") and file.endswith("__")):
            continue
        now = f"{folder}/{stem}" if folder else stem
        extension = extension.lower()
        if now != key or extension in parts:
            if parts:
                yield key, parts
            key, parts = now, {}
        parts[extension] = value
    if parts:
        yield key, parts


def image_of(parts: dict[str, Value]) -> Value | None:
    """The part that holds the image, None where there is none."""
    best = min((PLACES[ending] for ending in parts if ending in PLACES), default=None)
    return None if best is None else parts[IMAGES[best]]


def label_of(parts: dict[str, bytes]) -> int:
    """The label of `cls` (an integer in ASCII) or `json` (an integer, or {"label": integer} or {"cls": integer})."""
    found = next((extension for extension in LABELS if extension in parts), None)
    if found is None:
        return NO_LABEL
    try:
        value = json.loads(parts[found]) if found == "json" else int(parts[found])
    except (ValueError, RecursionError):
        return NOT_A_LABEL
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= -NOT_A_LABEL:
        return NOT_A_LABEL
    return value


def extra_of(parts: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value | None]:
    """The parts that hold what a sample carries beside, by name, None where there is none."""
    return {name: parts.get(name.lower() + EXTRA) for name in names}


def refuse_dots(shard: str, key: str, parts: Mapping[str, object]) -> None:
    """Raises DataError for a sample whose image or label is there, under a name with more dots than a key may have."""
    for known, what in ((IMAGES, "image"), (LABELS, "label")):
        if not any(ending in parts for ending in known):
            found = next((part for part in parts if part.rpartition(".")[2] in known and "." in part), None)
            if found is not None:
                raise DataError(
                    f"shard {shard}: sample {key} has no {what}, but a file {key}.{found} is there. A key ends at the "
                    f"first dot of a file's name, so {key} would be the key of all that begin so: write the shard with "
                    "_ for the other dots, as python -m tools.make_shards does."
                )
