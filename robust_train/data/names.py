"""What the classes of a data set are called: classes.json beside its shards, in any of the forms that people write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robust_train.data.manifest import remote
from robust_train.read.errors import DataError
from robust_train.read.text import json_of, lines_of, text_of

FILE = "classes.json"
FORMS = 'Write a list of names in the order of labels, {"0": name}, {name: 0}, or a list of {"index": 0, "name": name}.'


def class_names(urls: Iterable[str], classes: int) -> list[str]:
    """A name for each label: from the first classes.json beside the shards, else the number itself.

    Raises DataError for a classes.json that names no classes; reads no image.
    """
    names = [str(label) for label in range(classes)]
    path = names_beside(urls)
    if path is not None:
        for label, name in labelled_names(path):
            if 0 <= label < classes:
                names[label] = name
    return names


def names_beside(urls: Iterable[str]) -> Path | None:
    """The first classes.json beside shards that lie here; None where there is none."""
    folders = dict.fromkeys(Path(url).expanduser().parent for url in urls if not remote(url))
    return next((folder / FILE for folder in folders if (folder / FILE).exists()), None)


def labelled_names(path: Path, folders: bool = False) -> list[tuple[int, str]]:
    """(label, name) of each class by a JSON file of any of FORMS; labels need not be all. DataError where it is none.

    folders: what its folder is called (`wnid`, the first of a list), not what people call it (`name`, the last).
    """
    known = json_of(path, "the names of classes", FORMS, (list, dict))
    called = _folder if folders else _name
    try:
        pairs: list[tuple[Any, Any]] = list(enumerate(known) if isinstance(known, list) else known.items())
        if isinstance(known, dict) and all(_whole(value) for value in known.values()):  # torchvision's class_to_idx
            pairs = [(value, name) for name, value in pairs]
        found = [
            (int(entry.get("index", place)) if isinstance(entry, dict) else int(place), called(entry))
            for place, entry in pairs
        ]
    except (TypeError, ValueError) as error:
        raise DataError(f"the names of classes {path} cannot be read ({error}). {FORMS}") from error
    labels = Counter(label for label, _ in found)
    twice = next((label for label, count in labels.items() if count > 1), None)
    if not found or twice is not None:
        why = "are none" if not found else f"name class {twice} twice"
        raise DataError(f"the names of classes {path} {why}. {FORMS}")
    return found


def ids_of(path: Path) -> tuple[str, ...]:
    """What the class folders of a data set are called, in the order of labels: a JSON file, or a name a line.

    DataError where a label is left out.
    """
    if not text_of(path, "the list of classes", FORMS).lstrip().startswith(("[", "{")):
        return tuple(line.split()[0] for line in lines_of(path, "the list of classes", FORMS))
    names = dict(labelled_names(path, folders=True))
    if sorted(names) != list(range(len(names))):
        raise DataError(f"the names of classes {path} do not name each label from 0 on. {FORMS}")
    return tuple(names[label] for label in range(len(names)))


def _whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.isdecimal())


def _name(entry: Any) -> str:
    """The shortest thing that people call a class: the first of several words."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("name", "words", "wnid") if key in entry), None)
    return _text(entry[-1] if isinstance(entry, list) and entry else entry).split(",")[0]


def _folder(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("wnid", "name") if key in entry), None)
    return _text(entry[0] if isinstance(entry, list) and entry else entry)


def _text(entry: Any) -> str:
    if isinstance(entry, bool) or not isinstance(entry, str | int):
        raise ValueError(f"{entry!r} is no name of a class")
    return str(entry)
