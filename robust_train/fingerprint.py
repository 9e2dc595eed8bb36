"""Fingerprints: what a value is, and what the code is that makes numbers of it, alike in every process.

Everything counts that is not named as harmless: a field by its class (`harmless`), a source file by `HARMLESS` below.
So what is added later counts by itself, and what was kept under another fingerprint is not taken.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from robust_train import disk

PACKAGE = Path(__file__).parent
KNOWN = (PACKAGE.name, "builtins", "torch", "timm", "numpy")  # their versions and sources stand elsewhere
HARMLESS = (  # source files, and folders of such, on which no verdict rests
    "__main__.py",
    "check.py",
    "command.py",
    "forecast.py",
    "job.py",
    "train.py",
    "engines/",
    "launch/",
    "objectives/",
    "records/",
    "settings/",
    "tools/",
    "evaluate/report.py",
    "evaluate/signs.py",
    "evaluate/study.py",
)


def tree(value: Any) -> Any:
    """A value as JSON can hold it. A dataclass is its class and every field but the harmless; a tensor its bytes' sum.

    A class may say by `contents()` what harmless fields, such as paths, lead to. Of a class or function
    from outside this package its file counts too, with all that this imports and is not installed, and what they close
    over. Raises TypeError for what has no such form.
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
    if isinstance(value, partial):
        return {"partial": [tree(value.func), tree(value.args), tree(value.keywords)]}
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


def _named(kind: Any) -> Any:
    """A class or function; of one that is none of this package's also its source, and what it closes over."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.partition(".")[0] in KNOWN:
        return name if not _closed(kind) else [name, _closed(kind)]
    try:
        own = sources(Path(inspect.getfile(kind)))
    except (OSError, TypeError):  # a class that was typed in, or a built one
        own = {}
    return [name, own, _closed(kind)]


def _closed(kind: Any) -> list[Any]:
    """What a function, or a class's methods, find in the functions around them: a factory makes many of one source."""
    found: list[Any] = []
    asked, met = [kind], set[int]()
    while asked:
        one = asked.pop()
        if id(one) in met:
            continue
        met.add(id(one))
        if hasattr(one, "__wrapped__"):  # what functools.cache and its like were put around
            asked.append(one.__wrapped__)
        if isinstance(one, type) and one.__module__.partition(".")[0] not in KNOWN:
            asked += [getattr(value, "__func__", value) for value in vars(one).values()]
        for cell in (getattr(one, "__closure__", None) or ()) if inspect.isfunction(one) else ():
            with suppress(ValueError):  # not assigned yet
                held = cell.cell_contents
                if isinstance(held, type) or inspect.isfunction(held):  # super() closes over its own class
                    found.append(held.__qualname__)
                    asked.append(held)
                else:
                    found.append(tree(held))
    return found


def sources(file: Path) -> dict[str, str]:
    """{module or file: sha256} of a source file and of all it imports, however deep, that is not installed."""
    found: dict[str, str] = {}
    asked = [(inspect.getmodulename(str(file)) or file.name, file, _package(file))]
    while asked:
        name, path, package = asked.pop()
        if path.suffix != ".py" or name in found:
            continue
        found[name] = checksum(path)
        stat = path.stat()
        for other in _imports(path, package, stat.st_mtime_ns, stat.st_size):
            origin = _origin(other)
            if origin is not None and other not in found:
                asked.append((other, origin, _package(origin, other)))
    return found


def _package(file: Path, name: str = "") -> str:
    """The package that a module's relative imports begin in."""
    known = (module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == str(file))
    module = next(known, None)
    if module is not None:
        return str(module.__package__ or "")
    return name if file.name == "__init__.py" else name.rpartition(".")[0]


def _origin(name: str) -> Path | None:
    """The file of a module that is neither this package's nor installed; None for any other, and for no module."""
    if name.partition(".")[0] in KNOWN or name.partition(".")[0] in sys.stdlib_module_names:
        return None
    try:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None) if module is not None else importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # a name that is no module but something in one
        return None
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if origin is None or not Path(origin).is_file() or "site-packages" in Path(origin).parts:
        return None
    return Path(origin)


@lru_cache(maxsize=256)
def _imports(file: Path, package: str, written: int, size: int) -> tuple[str, ...]:
    """What the imports of a file may lead to, those inside its functions too: modules, and names in them."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found |= dict.fromkeys([base, *(f"{base}.{alias.name}" for alias in node.names)])
    parents = [name.rsplit(".", n)[0] for name in found for n in range(1, name.count(".") + 1)]
    return tuple(name for name in dict.fromkeys([*found, *parents]) if name)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
