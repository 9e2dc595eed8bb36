"""From YAML to a run and back: `load_tree`, `parse`, `dump`, `difference`.

parse(Run, load_tree("configs/x.yaml"), source="configs/x.yaml")    every mistake at once, in one ConfigError
parse(Run, load_tree(dump(run))) == run
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from robust_train.nouns import Noun
from robust_train.read import uses, yaml
from robust_train.read.errors import ConfigError, nearest
from robust_train.read.strict import read

Kind = TypeVar("Kind")
Tree = dict[str, Any]

DEPTH = 2  # files below the one that is named: deeper, and nobody can say what a run is from reading it


def load_tree(written: str | Path) -> Tree:
    """The tree of a YAML file, or of YAML text, with the files named by `base:` merged below it.

    Text is what has a line break, a brace or `: ` in it, or is empty; all else is a path. `base:` is relative to the
    file (for text: to the working folder), at most two deep. Raises ConfigError.
    """
    if isinstance(written, str) and (not written.strip() or any(mark in written for mark in ("\n", "{", ": "))):
        return _based(yaml.read(written), "text", Path(), (Path("text"),))
    path = Path(written)
    return _based(yaml.read(_text(path), str(path)), str(path), path.parent, (path.resolve(),))


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`, by key. A node whose `use:` changes replaces the node; so do lists and scalars.

    A noun written as its name alone counts as `{use: name}` where fields are laid over it.
    """
    if not isinstance(above, Mapping):
        return above
    if isinstance(below, str):
        below = {"use": below}
    if not isinstance(below, Mapping) or ("use" in above and above["use"] != below.get("use")):
        below = {}
    return {**below, **{key: merge(below.get(key), value) for key, value in above.items()}}


def parse(kind: type[Kind], tree: Any, where: str = "run", source: str | None = None) -> Kind:
    """`tree` as a `kind`: a dataclass, a noun's root, or a type made of them. Instances in the tree stay as they are.

    Of a `kind` with a field `uses`, the modules that it names are imported before the rest is read.

    Raises one ConfigError with every mistake: its place below `where`, what was expected, what was found, the nearest
    known name.
    """
    if isinstance(tree, Mapping) and "uses" in getattr(kind, "__dataclass_fields__", ()):
        uses.bring(tree.get("uses"), source)
    wrong: list[str] = []
    found = read(kind, {} if tree is None and is_dataclass(kind) else tree, where, wrong)
    if wrong:
        count = f"{len(wrong)} mistake{'s' * (len(wrong) > 1)}"
        raise ConfigError("\n  ".join([f"{count} in {source or 'the run'}:", *wrong]))
    return cast(Kind, found)


def dump(instance: Any) -> str:
    """`instance` as YAML: `use:` first, then every field in order, defaults too."""
    return yaml.write(tree_of(instance))


def tree_of(value: Any) -> Any:
    """A dataclass, however deep, as the tree that `parse` reads. Raises ConfigError for what YAML cannot hold."""
    if is_dataclass(value) and not isinstance(value, type):
        own = vars(type(value)).get("use")  # not a parent's: an unregistered child is no parent
        use = {"use": own} if isinstance(value, Noun) and own else {}
        return {**use, **{f.name: tree_of(getattr(value, f.name)) for f in fields(value) if f.init}}
    if isinstance(value, Mapping):
        return {key: tree_of(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [tree_of(entry) for entry in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ConfigError(
        f"{value!r} ({type(value).__name__}) cannot be written as YAML; give a plain number, text or list"
    )


def difference(a: Any, b: Any) -> list[str]:
    """What differs between two instances or trees: `objective.beta: was 6.0, is now 5.0`, a line for each field."""
    return _differences(tree_of(a), tree_of(b), "")


def _differences(a: Any, b: Any, where: str) -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.get("use") == b.get("use"):
        names = [*a, *(name for name in b if name not in a)]
        return [line for name in names for line in _between(a, b, name, f"{where}.{name}" if where else str(name))]
    if (a == b and type(a) is type(b)) or (a != a and b != b):  # NaN is as it was
        return []
    return [f"{where or 'all'}: was {yaml.brief(a)}, is now {yaml.brief(b)}"]


def _between(a: Mapping[Any, Any], b: Mapping[Any, Any], name: Any, where: str) -> list[str]:
    if name not in b:
        return [f"{where}: was {yaml.brief(a[name])}, is now absent"]
    if name not in a:
        return [f"{where}: was absent, is now {yaml.brief(b[name])}"]
    return _differences(a[name], b[name], where)


def _based(tree: Any, source: str, folder: Path, files: tuple[Path, ...]) -> Tree:
    """`tree` over what its `base:` says; `files` are those being read, the run's own first."""
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected fields (name: value), got {type(tree).__name__}")
    if "base" not in tree:
        return tree
    base = tree.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{source}: base: expected the path of a YAML file, got {base!r}")
    path = folder / base
    chain = " -> ".join([*(file.name for file in files), path.name])
    if path.resolve() in files:
        raise ConfigError(f"{source}: base: goes in a circle ({chain}); take one of them out")
    if len(files) > DEPTH:
        raise ConfigError(f"{source}: base: at most {DEPTH} files below a run ({chain}); merge two of them")
    below = _based(
        yaml.read(_text(path, f"{source}: base: "), str(path)), str(path), path.parent, (*files, path.resolve())
    )
    return cast(Tree, merge(below, tree))


def _text(path: Path, before: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{before}{path}: no such file{nearest(path.name, beside)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{before}{path}: is a folder; name a YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{before}{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
