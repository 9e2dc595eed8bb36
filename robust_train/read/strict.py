"""A tree as a value, by the type hints of its class: strictly, every mistake with its place.

what a field may be    bool, int, float (a whole number too), str, None, Literal, tuple, list, dict, unions of these,
                       dataclasses, nouns (by their registry), Any; Annotated[type, reader] is read by its reader,
                       a function from what is written to the value that raises ValueError
what is refused        a key that is no field, a scalar of another type, a list too short or too long, and what a class
                       itself refuses: a ValueError of its __post_init__ is a mistake, all else is a bug and passes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from robust_train.nouns import Noun
from robust_train.read.errors import nearest
from robust_train.read.ranges import refusals

Mistakes = list[str]

WANTED = {bool: "bool", int: "int", float: "float", str: "str", NoneType: "null"}
REMEDIES = {bool: ": write true or false", str: ": put it in quotes"}  # for a scalar of another type
LISTS = (tuple, list)


def read(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    """`tree` as a `kind`: any type of the above. Instances in the tree stay as they are.

    Each mistake is added to `wrong` as `place: what`; with mistakes the value is of no use.
    """
    if kind is Any:
        return tree
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _annotated(kind, tree, place, wrong)
    if origin in (Union, UnionType):
        return _union(kind, tree, place, wrong)
    if origin is Literal:
        return _literal(kind, tree, place, wrong)
    if origin in LISTS:
        return _list(kind, tree, place, wrong)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(kind, tree, place, wrong)
    if isinstance(origin, type) and issubclass(origin, Noun):
        return _noun(kind, tree, place, wrong)
    return (_fields if is_dataclass(kind) else _scalar)(kind, tree, place, wrong)


def shown(value: Any) -> str:
    """A value and its type, as a mistake tells them."""
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def _fields(cls: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    """An instance of a dataclass from a mapping of its fields; no key left over."""
    if isinstance(tree, cls):
        return tree
    if not isinstance(tree, Mapping):
        return _refuse(f"expected the fields of {cls.__name__}, got {shown(tree)}", place, wrong)
    before, given = len(wrong), {}
    known = {f.name: f for f in fields(cls) if f.init}
    for name, field in known.items():
        if name in tree:
            given[name] = read(_hints(cls)[name], tree[name], _below(place, name), wrong)
        elif field.default is MISSING and field.default_factory is MISSING:
            _refuse("missing; it has no default", _below(place, name), wrong)
    for name in tree:
        if name not in known:
            meant = nearest(name, known) or f" (it has {', '.join(known)})"
            _refuse(f"no such field of {cls.__name__}{meant}", _below(place, name), wrong)
    if len(wrong) > before:
        return None
    try:
        made = cls(**given)
    except ValueError as error:  # from __post_init__, which knows the ranges
        return _refuse(str(error), place, wrong)
    for name, what in refusals(made):
        _refuse(what, _below(place, name), wrong)
    return made


def _noun(wanted: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    """An instance of `wanted` from an instance, a name, or a mapping with `use:` and the fields.

    Names are looked up as the tree is read, so the registry may grow. Where `wanted` is one class, `use:` may be left
    out.
    """
    if isinstance(tree, wanted):
        return tree
    if is_dataclass(wanted) and not (isinstance(tree, Mapping) and "use" in tree):
        return _fields(wanted, tree, place, wrong)
    registry = wanted.registry
    tree = {"use": tree} if isinstance(tree, str) else tree
    if not isinstance(tree, Mapping):
        return _refuse(f"expected {registry.noun} {{use: name, ...}}, got {shown(tree)}", place, wrong)
    if "use" not in tree:
        known = ", ".join(registry.among(wanted)) or "none"
        return _refuse(f"missing; name the {registry.noun} (known: {known})", _below(place, "use"), wrong)
    name = tree["use"]
    found = registry.get(name) if isinstance(name, str) else None
    if found is None or not issubclass(found, wanted):
        return _refuse(registry.refusal(name, wanted), _below(place, "use"), wrong)
    return _fields(found, {key: value for key, value in tree.items() if key != "use"}, place, wrong)


def _union(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    """A mapping, a list or a scalar is read as the branches of its form; one mistake for those that are alike."""
    branches = get_args(kind)
    if tree is None and NoneType in branches:
        return None
    forms: dict[str, list[Any]] = {}
    for branch in branches:
        if branch is not NoneType:
            forms.setdefault(_form(branch), []).append(branch)
    written = "mapping" if isinstance(tree, Mapping) or is_dataclass(tree) else "scalar"
    written = "list" if isinstance(tree, LISTS) else written
    alike = forms[next(form for form in (written, "scalar", "mapping", "list") if form in forms)]
    if len(alike) == 1:
        return read(alike[0], tree, place, wrong)
    for branch in alike:
        quiet: Mistakes = []
        found = read(branch, tree, place, quiet)
        if not quiet:
            return found
    return _refuse(f"expected {' or '.join(map(_name, alike))}, got {shown(tree)}", place, wrong)


def _annotated(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    try:
        return get_args(kind)[1](tree)
    except ValueError as error:
        return _refuse(str(error), place, wrong)


def _literal(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    values = get_args(kind)
    if any(tree == value and type(tree) is type(value) for value in values):
        return tree
    near = nearest(tree, [value for value in values if isinstance(value, str)])
    return _refuse(f"expected {_name(kind)}, got {shown(tree)}{near}", place, wrong)


def _list(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    """YAML has lists only: they become the tuples that fields ask for."""
    if not isinstance(tree, LISTS):
        return _refuse(f"expected a list, got {shown(tree)}", place, wrong)
    made, kinds = get_origin(kind) or kind, get_args(kind) or (Any, ...)
    if made is list or kinds[1:] == (...,):
        kinds = (kinds[0],) * len(tree)
    if len(tree) > len(kinds):
        return _refuse(f"expected {len(kinds)} entries, got {len(tree)}", place, wrong)
    for number in range(len(tree), len(kinds)):
        _refuse("missing: the list is too short", f"{place}[{number}]", wrong)
    found = [read(k, entry, f"{place}[{i}]", wrong) for i, (k, entry) in enumerate(zip(kinds, tree, strict=False))]
    return made(found)


def _mapping(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    if not isinstance(tree, Mapping):
        return _refuse(f"expected a mapping, got {shown(tree)}", place, wrong)
    of_key, of_value = get_args(kind) or (Any, Any)
    below = {key: _below(place, key) for key in tree}
    return {read(of_key, key, below[key], wrong): read(of_value, tree[key], below[key], wrong) for key in tree}


def _scalar(kind: Any, tree: Any, place: str, wrong: Mistakes) -> Any:
    if kind is float and type(tree) is int:  # a whole number may stand for a float
        try:
            return float(tree)
        except OverflowError:
            return _refuse("is too large for a float", place, wrong)
    if type(tree) is kind or (kind not in WANTED and isinstance(tree, kind)):
        return tree
    scalar = isinstance(tree, (str, int, float))
    return _refuse(f"expected {_name(kind)}, got {shown(tree)}{REMEDIES.get(kind, '') if scalar else ''}", place, wrong)


def _refuse(text: str, place: str, wrong: Mistakes) -> None:
    wrong.append(f"{place}: {text}")


def _below(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def _form(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin in LISTS:
        return "list"
    of = isinstance(origin, type) and (is_dataclass(origin) or issubclass(origin, (Noun, Mapping)))
    return "mapping" if of else "scalar"


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *first, last = map(repr, get_args(kind))
        return f"{', '.join(first)} or {last}" if first else last
    return WANTED.get(kind) or str(getattr(kind, "__name__", kind))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
