"""Paths as people write them: `~` and variables stand for what they mean, or are refused; two spellings of one place.

~/runs/a   ~ann/runs   $SCRATCH/runs   ${SCRATCH}/runs       expanded where they are read
$NOT_SET/runs   ${SCRATCH:-/tmp}   ~nobody/runs              refused: no folder of such a name is ever made
pipe:cat $FILES                                              a command: its variables are the shell's
https://host/~ann/a.tar   gs://$BUCKET/a.tar                 of an address the variables alone
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from robust_train.read.errors import ConfigError

SETTING = re.compile(r"[A-Za-z_][\w.-]*=")  # key=value: who reads the value knows whether it is a path
VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*)|(?=[{(]))")


def expanded(written: str) -> str:
    """A path with `~` and variables replaced. Raises ValueError for what cannot be."""
    if written.startswith("pipe:"):
        return written

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name is None:
            raise ValueError(
                f"{written!r}: of the shell's expansions only ~, $NAME and ${{NAME}} are known; write it out"
            )
        if not os.environ.get(name):
            raise ValueError(f"{written!r}: ${name} is not set here. Set it (export {name}=...), or write the path out")
        return os.environ[name]

    path = VARIABLE.sub(value, written)
    if VARIABLE.search(path):
        raise ValueError(f"{written!r} stands for {path!r}, which has a $ of its own; name the place by another path")
    if not path.startswith("~") or "://" in path:
        return path
    home = os.path.expanduser(path)
    if home.startswith("~"):
        user = path[1:].partition("/")[0]
        raise ValueError(f"{written!r}: no user is called {user!r} here; a folder of that name is written ./{path}")
    return home


def read(written: Any) -> str:
    """A path as a field of a run reads it. Raises ValueError where it is none."""
    if isinstance(written, os.PathLike):
        written = os.fspath(written)
    if not isinstance(written, str):
        said = "null" if written is None else f"{written!r} ({type(written).__name__})"
        raise ValueError(f"expected a path, got {said}: put it in quotes")
    if not written.strip() or "\0" in written:
        raise ValueError("expected a path, got an empty text")
    return expanded(written)


FilePath = Annotated[str, read]
"""A path, pattern or address in a run or an option's argument: `~` and `$NAME` are replaced as it is read."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose every text argument is read as a path is; ConfigError where that cannot be. Not key=value."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", None, word)  # what an option without a type of its own is read by


def word(written: str) -> str:
    """An argument of a command line with `~` and variables replaced. Raises ConfigError."""
    try:
        return written if SETTING.match(written) else expanded(written)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def home_cache() -> str:
    """Where what can be made again is kept, unless a run says otherwise."""
    return os.path.expanduser("~/.cache/robust_train")


def run_file(path: str | os.PathLike[str]) -> Path:
    """The file of a run, sweep or study: as it is named; `configs/...` that is not there, the one of this package."""
    named = Path(path)
    ours = Path(__file__).parents[1] / named
    return ours if not named.exists() and named.parts[:1] == ("configs",) and ours.is_file() else named


def place(path: str | os.PathLike[str]) -> str:
    """Where a path leads, by one spelling: links followed, no `/` twice or at the end. Patterns, by their folder.

    An address stays as it is.
    """
    text = expanded(os.fspath(path))
    if text.startswith("pipe:") or "://" in text:
        return text
    return os.path.realpath(text.removeprefix("file:"))


def holds_path(hint: Any) -> bool:
    """Whether a type hint, with its extras, is of a path, or of several."""
    return read in getattr(hint, "__metadata__", ()) or any(holds_path(inner) for inner in get_args(hint))


def path_fields(cls: type) -> list[str]:
    """The fields of a dataclass that hold paths."""
    return [name for name, hint in get_type_hints(cls, include_extras=True).items() if holds_path(hint)]
