"""A user's own modules: `uses: [my_lab.half]` in a run, imported before the rest of the run is read.

So a run may name objectives, attacks, models, data sets that this project does not know: the modules register them.

where     the working folder and PYTHONPATH; where a module is in neither, the folder `uses` beside the run's file:
          runs and checkpoints keep the source text there, so that a checkpoint can be read where the module is not
what      of `my_lab.half` the file, and every file of the package my_lab that it has imported; of `half` that file.
          What else it needs is installed, or named in `uses:` too
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from robust_train.disk import digest
from robust_train.read.errors import ConfigError

FOLDER = "uses"
_names: dict[str, None] = {}  # the modules brought so far, in order
_texts: dict[str, str] = {}  # by module: its source as it was when it was imported; its file may change later

_told: set[str] = set()


def bring(names: Any, source: str | None = None) -> None:
    """Import the modules that a run says it uses, in order; source: the file that says so, for `uses` beside it.

    What is no list of names is left to the reader of the run to refuse. ConfigError where a module is not found or
    raises.
    """
    said = f"{source or 'the run'}: uses:"
    names = [name for name in names if isinstance(name, str)] if isinstance(names, (list, tuple)) else []
    if not names:
        return
    here = Path.cwd()
    folders = [here, *([] if source is None else [Path(source).absolute().parent / FOLDER])]
    search(*folders)
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{said} {name!r} is no module's name: write it as Python imports it, my_lab.half")
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{said} {_trouble(name, error, folders)}") from error
        _names[name] = None
        sources([name])


def search(*folders: Path) -> None:
    """Let modules be found in these folders too, after all others."""
    sys.path += [str(folder) for folder in folders if folder.is_dir() and str(folder) not in sys.path]
    importlib.invalidate_caches()  # files may be younger than the last look


def sources(names: Iterable[str]) -> dict[str, str]:
    """{path below `uses`: source text as imported} of modules, and of what they have imported of their own package."""
    tops = {name.partition(".")[0] for name in names}
    found: dict[str, str] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in tops and file and file.endswith(".py"):
            if name not in _texts:
                _texts[name] = _text(Path(file))
            found[_path(name, module)] = _texts[name]
    return found


def changed(names: Iterable[str], folder: Path) -> list[str]:
    """A line for each file of these modules that is not what lies in `folder`, a run's or a checkpoint's."""
    lines = []
    for path, text in sources(names).items():
        kept = folder / FOLDER / path
        if not kept.is_file():
            lines.append(f"{path} is new since {folder}")
        elif (there := _text(kept)) != text:
            lines.append(
                f"{path} has changed since {folder} (sha256 {digest(there)[:12]} there, {digest(text)[:12]} here)"
            )
    return lines


def tell(names: Iterable[str], folder: Path) -> None:
    """Say on stderr, once a process, what has changed since a checkpoint was made: what is here counts."""
    for line in changed(names, folder):
        if line not in _told:
            _told.add(line)
            print(f"{line}: what is here is used", file=sys.stderr)


def checksums(names: Iterable[str]) -> dict[str, str]:
    """{path: sha256} of the same files."""
    return {path: digest(text) for path, text in sources(names).items()}


def roots() -> list[str]:
    """The folders that the modules brought so far were found in."""
    found: dict[str, None] = {}
    for name in _names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            up = name.count(".") + (Path(file).name == "__init__.py")
            found[str(Path(file).absolute().parents[up])] = None
    return list(found)


class Carried:
    """A value on its way to another process, where the modules brought here are imported before it is unpickled."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return _unpack, (roots(), list(_names), pickle.dumps(self.value))


def _unpack(folders: list[str], names: list[str], packed: bytes) -> Carried:
    search(*map(Path, folders))
    bring(names)
    return Carried(pickle.loads(packed))


def _trouble(name: str, error: BaseException, folders: list[Path]) -> str:
    """Why a module cannot be had, and what to do."""
    file = name.replace(".", os.sep) + ".py"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        looked = ", ".join(str(folder) for folder in folders if folder.is_dir())
        return (
            f"there is no module {name} ({file} was looked for in {looked} and PYTHONPATH). Give the command in the "
            "folder that it is found from, or name that folder in PYTHONPATH."
        )
    if isinstance(error, SyntaxError) and error.filename:
        place, line, code = error.filename, error.lineno, (error.text or "").strip()
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place, line, code = last.filename, last.lineno, last.line or ""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    return (
        f"{name} cannot be imported: {what}\n    {place}:{line}: {code}\n"
        f"Put that right, or take {name} out; `python -c 'import {name}'` shows the whole of it."
    )


def _path(name: str, module: ModuleType) -> str:
    inside = "/__init__.py" if hasattr(module, "__path__") else ".py"
    return name.replace(".", "/") + inside


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
