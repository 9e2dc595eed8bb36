"""Fingerprints: what a value is, and what the code is that makes numbers of it, alike in every process.

Everything counts that is not named as harmless: a field by its class (`harmless`), a source file by `HARMLESS` below.
So what is added later counts by itself, and what was kept under another fingerprint is not taken.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from robust_train import disk

PACKAGE = Path(__file__).parent
HARMLESS = (  # source files, and folders of such, on which no verdict rests
    "__main__.py",
    "check.py",
    "command.py",
    "forecast.py",
    "job.py",
    "train.py",
    "engines/",
    "objectives/",
    "records/",
    "settings/",
    "evaluate/report.py",
    "evaluate/signs.py",
    "evaluate/study.py",
)


def tree(value: Any) -> Any:
    """A value as JSON can hold it. A dataclass is its class and every field but the harmless; a tensor its bytes' sum.

    A class may say by `contents()` what harmless fields, such as paths, lead to. Of a class from outside this package
    its file counts too. Raises TypeError for what has no such form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind: Any = type(value)
        harmless = getattr(kind, "harmless", ())
        own = {field.name: tree(getattr(value, field.name)) for field in fields(value) if field.name not in harmless}
        return {"is": _named(kind), **own, **_contents(value)}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        return {"tensor": str(flat.dtype), "shape": list(flat.shape), "sha256": _sum(flat.numpy().tobytes())}
    if isinstance(value, Mapping):
        return {str(name): tree(entry) for name, entry in value.items()}
    if isinstance(value, Set):
        return sorted((tree(entry) for entry in value), key=str)
    if isinstance(value, (tuple, list)):
        return [tree(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if inspect.isroutine(value) or isinstance(value, type):
        return {"is": _named(value)}
    if hasattr(value, "contents"):
        return {"is": _named(type(value)), **_contents(value)}
    raise TypeError(
        f"{value!r} ({type(value).__name__}) has no fingerprint: name it as harmless, or make it a dataclass"
    )


def digest(value: Any) -> str:
    """Twelve characters that stand for `tree(value)`."""
    return _sum(json.dumps(tree(value), sort_keys=True).encode())[:12]


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, or have one fingerprint."""
    try:
        if one is other or bool(one == other):
            return True
    except (RuntimeError, ValueError):  # tensors or arrays in them
        pass
    try:
        return type(one) is type(other) and digest(one) == digest(other)
    except TypeError:  # has none
        return False


@cache
def source() -> str:
    """sha256 of the source files on which verdicts rest, as they were when they were first asked for."""
    return source_of(PACKAGE)


def source_of(package: Path) -> str:
    """The same of a package's folder as it is now."""
    every = sorted(path for path in package.rglob("*.py") if "__pycache__" not in path.parts)
    names = [path.relative_to(package).as_posix() for path in every]
    counted = [name for name in names if not name.startswith(HARMLESS)]
    return _sum("\n".join(f"{name} {_sum((package / name).read_bytes())}" for name in counted).encode())


def checksum(path: Path) -> str:
    """sha256 of a weights file, or of all weights of a checkpoint, by its manifest."""
    file = path / "manifest.json" if path.is_dir() else path
    return disk.checksum(file)


def _contents(value: Any) -> dict[str, Any]:
    return {"contents": tree(value.contents())} if hasattr(value, "contents") else {}


def _named(kind: Any) -> str:
    """A class or function, with the checksum of its file where that is none of this package's."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in (PACKAGE.name, "builtins", "torch", "timm"):
        return name
    try:
        return f"{name} {checksum(Path(inspect.getfile(kind)))}"
    except (OSError, TypeError):  # a class that was typed in, or a built one
        return name


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
