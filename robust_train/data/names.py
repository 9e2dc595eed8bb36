"""What the classes of a data set are called: classes.json beside its shards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robust_train.data.manifest import remote


def class_names(urls: Iterable[str], classes: int) -> list[str]:
    """A name for each label: from the first classes.json beside the shards that has them, else the number itself.

    classes.json is a list, entry k for label k; or of {"index": k, "name" or "words" or "wnid": ...}; or {"k": name}.
    """
    names = [str(label) for label in range(classes)]
    for folder in dict.fromkeys(Path(url).parent for url in urls if not remote(url)):
        path = folder / "classes.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            pairs = enumerate(known) if isinstance(known, list) else ((int(key), value) for key, value in known.items())
            for place, entry in pairs:
                label = int(entry.get("index", place)) if isinstance(entry, dict) else place
                if 0 <= label < classes:
                    names[label] = _name(entry)
            break
    return names


def _name(entry: Any) -> str:
    """The shortest thing that people call a class: the first of several words."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("name", "words", "wnid") if key in entry), "?")
    if isinstance(entry, list):
        entry = entry[-1]
    return str(entry).split(",")[0]
