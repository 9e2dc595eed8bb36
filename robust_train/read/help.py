"""What `--help` and `--list` say, read from the classes themselves.

A field's documentation is the comment on its line, or the text under it:

    eps: float  # radius, pixels in [0, 1]
    steps: int
    '''Gradients per image.'''
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from robust_train.nouns import Noun
from robust_train.read import yaml
from robust_train.read.parse import tree_of
from robust_train.read.registry import Registry, registries

WIDTH = 120
PRAGMA = re.compile(r"\s*#\s*(noqa|type:|pragma|fmt:).*")  # for tools, not for readers


def describe(kind: type, where: str = "run") -> str:
    """A section for `kind` and one for each dataclass in it: fields, types, what they are, defaults.

    Nouns are not opened (any registered class may stand there); `catalogue` lists those.
    """
    return "\n\n".join("\n".join(_section(cls, place)) for place, cls in _sections(kind, where))


def catalogue(registry: Registry[Any], with_fields: bool = False) -> str:
    """Each `use:` name with the first line of its class's documentation; its fields too where asked."""
    wide = max((len(name) for name in registry), default=0)
    lines = []
    for name, cls in registry.items():
        lines.append(f"  {name:<{wide}}  {summary(cls)}".rstrip())
        if with_fields:
            lines += [f"  {line}" for line in _rows(cls)]
    return "\n".join(lines) or f"  no {registry.noun} is registered"


def undocumented(kind: type) -> list[str]:
    """`Class.field` of every field without documentation: of `kind`, and of every class that may stand in it."""
    missing: list[str] = []
    seen: set[type] = set()
    left = [kind]
    while left:
        cls = left.pop(0)
        if cls in seen:
            continue
        seen.add(cls)
        if not is_dataclass(cls):
            left += _registered(cls)
            continue
        documented = field_docs(cls)
        missing += [f"{cls.__name__}.{f.name}" for f in fields(cls) if f.init and not documented.get(f.name)]
        left += [found for hint in get_type_hints(cls).values() for found in _classes(hint)]
    return missing


def summary(cls: type) -> str:
    """The first line of a class's own documentation, or nothing."""
    text = cls.__dict__.get("__doc__") or ""
    made_up = text.startswith(f"{cls.__name__}(")  # what dataclass writes where nobody did
    return "" if made_up or not text.strip() else text.strip().splitlines()[0]


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The documentation of each field, inherited ones too, from the source of the classes."""
    documented: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if is_dataclass(owner):
            documented.update(_own_docs(owner))
    return documented


def _own_docs(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # typed at a prompt: no source is kept
        return {}
    tree = ast.parse(source).body[0]
    if not isinstance(tree, ast.ClassDef):
        return {}
    comments = {
        token.start[0]: PRAGMA.sub("", token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    documented = {}
    for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        on_its_lines = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
        said = [comments[line].lstrip("#: ").strip() for line in on_its_lines if line in comments]
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            said.append(inspect.cleandoc(after.value.value))
        documented[statement.target.id] = " ".join(" ".join(said).split())
    return documented


def _sections(kind: type, where: str) -> Iterator[tuple[str, type]]:
    """The dataclasses in `kind` with the path to each, itself first; none inside itself."""

    def walk(cls: type, place: str, above: tuple[type, ...]) -> Iterator[tuple[str, type]]:
        yield place, cls
        hints = get_type_hints(cls)
        for f in fields(cls):
            for found in _classes(hints[f.name]):
                if is_dataclass(found) and found not in above and not issubclass(found, Noun):
                    yield from walk(found, f"{place}.{f.name}", (*above, found))

    return walk(kind, where, (kind,))


def _section(cls: type, place: str) -> list[str]:
    said = summary(cls)
    return [f"{place}: {said}" if said else place, *_rows(cls)]


def _rows(cls: type) -> list[str]:
    """`  name: type = default   what it is`, the last column aligned and wrapped."""
    documented, hints = field_docs(cls), get_type_hints(cls)
    rows = [
        (f"  {f.name}: {_type(f, hints[f.name])}{_default(f)}", _said(f, documented, hints))
        for f in fields(cls)
        if f.init
    ]
    column = min(max((len(head) for head, _ in rows), default=0), 48) + 2
    lines = []
    for head, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - column, break_on_hyphens=False) or [""]
        if len(head) + 2 > column:
            lines.append(head)
            head = ""
        lines += [f"{start:<{column}}{line}".rstrip() for start, line in zip([head, *[""] * len(wrapped)], wrapped)]  # noqa: B905
    return lines


def _said(f: Field[Any], documented: dict[str, str], hints: dict[str, Any]) -> str:
    nouns = [name for name, registry in registries.items() if registry.root in _classes(hints[f.name])]
    if re.search(
        r"\bNumber\b", _type(f, None)
    ):  # a schedule may stand in many places: saying it each time helps nobody
        nouns.remove("schedules")
    listed = " ".join(f"(--list {name})" for name in nouns)
    return f"{documented.get(f.name, '')} {listed}".strip()


def _type(f: Field[Any], hint: Any) -> str:
    """The type as it is written; of a choice its values, whatever alias it goes by."""
    if get_origin(hint) is Literal:
        return " | ".join(yaml.brief(value) for value in get_args(hint))
    return f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))


def _default(f: Field[Any]) -> str:
    """` = default` on one line; an open dataclass's own section shows its fields."""
    value = f.default_factory() if f.default_factory is not MISSING else f.default
    if value is MISSING:
        return ""
    if is_dataclass(value) and not isinstance(value, Noun):
        return " = as below"
    return f" = {yaml.brief(tree_of(value))}"


def _classes(hint: Any) -> list[type]:
    """The nouns and dataclasses that a type hint names, however deep."""
    if isinstance(hint, type) and (is_dataclass(hint) or issubclass(hint, Noun)):
        return [hint]
    return [found for inner in get_args(hint) for found in _classes(inner)]


def _registered(root: type) -> list[type]:
    registry = getattr(root, "registry", None)
    return [] if registry is None else [cls for cls in registry.values() if issubclass(cls, root)]
