"""YAML as a run is written in it: the 1.2 core schema, fractions, and no guessing.

1e-3  .5  4/255  0.5/255  -1/3    floats; a fraction of two plain numbers is the float nearest to it
no  on  yes  off  2024-01-01      text (YAML 1.1 would make booleans and a date of them)
010  1_000                        refused: readers disagree on what they are
{eps: 1, eps: 2}                  refused, with both lines
<<: *other                        refused: `base:` lays one file over another
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from fractions import Fraction
from typing import Any

import yaml

from robust_train.read.errors import ConfigError

DECIMAL = r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)"
INT = r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+"
FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
FRACTION = rf"[-+]?{DECIMAL}/{DECIMAL}"
AMBIGUOUS = r"[-+]?0[0-9]+|[-+]?[0-9][0-9.]*_[0-9_.]*(?:[eE][-+]?[0-9]+)?"

ELSEWHERE = r"[yYnN]|(?i:yes|no|on|off)|=|<<|0b[01]+|[-+]?[0-9]+(?::[0-9]+)+(?:\.[0-9]*)?|[0-9]{4}-[0-9]{1,2}-[0-9].*"

REMEDIES = {  # what PyYAML says, and what to do
    r"found character '\t'": "a tab; YAML indents by spaces: put spaces in its place",
    "found another document": "a run is one document: take out the --- between two",
    "that cannot start any token": "put the text in quotes",
    "mapping values are not allowed": "a value that holds ': ' is put in quotes, and fields of one node stand in one "
    "column",
}
PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")  # the tags that are read

SCALARS = (  # the first that fits
    ("!ambiguous", AMBIGUOUS, "-+0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", INT, "-+0123456789"),
    ("tag:yaml.org,2002:float", rf"{FLOAT}|{FRACTION}", "-+.0123456789"),
)


def read(text: str, source: str = "text") -> Any:
    """The tree written in `text`: dicts, lists, str, int, float, bool and None.

    Raises ConfigError with `source:line:column` and the line.
    """
    try:
        loader = Reader(text)
        try:
            tree = loader.get_single_data()
            _refuse_circles(tree, source)
            return tree
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ": ".join(part for part in (error.context, error.problem) if part)
        what += next((f": {remedy}" for sign, remedy in REMEDIES.items() if sign in what), "")
        raise ConfigError(f"{source}{_place(mark)}: {what}{_line(text, mark)}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source}: {error.reason} (character {error.position}); take it out") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply; does an alias hold itself?") from None


def write(tree: Any) -> str:
    """`tree` as YAML that `read` gives back exactly; keys in their order, innermost mappings and lists on one line."""
    return yaml.dump(tree, Dumper=Writer, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def brief(tree: Any) -> str:
    """`tree` on one line."""
    text = yaml.dump(
        [tree], Dumper=Writer, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.strip()[1:-1]


def write_float(value: float) -> str:
    """A float in the shortest of its exact forms: `4/255` and `0.5/255` for grey levels, else as Python has it."""
    if not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    plain = repr(value)
    if abs(value) > 1:
        return plain
    level = round(value * 510) / 2
    grey = f"{level:g}/255"
    exact = level and float(Fraction(f"{level:g}") / 255) == value
    return grey if exact and len(grey) < len(plain) else plain


class Reader(yaml.SafeLoader):
    """Plain data only, by the scalars above."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """A dict; each key once."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key == "<<" and key_node.style is None:
                raise _error(
                    "<< is no merge here, as in YAML 1.2: write the fields out, lay the file over another (base: "
                    "other.yaml), or quote it ('<<') if a name is meant",
                    key_node,
                )
            if not isinstance(key, Hashable):
                raise _error("a key must be a scalar", key_node)
            if key in seen:
                raise _error(f"{key!r} stands twice, on line {seen[key]} and on line {line}; keep one", key_node)
            seen[key] = line
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: Any) -> None:
        """Nothing is merged by `<<`; `base:` does the merging here."""

    def read_float(self, node: Any) -> float:
        """A float, also of a fraction, rounded once."""
        text = self.construct_scalar(node)
        if re.fullmatch(FRACTION, text):
            above, below = text.split("/")
            if not Fraction(_digits(below)):
                raise _error(f"{text} divides by zero", node)
            return float(Fraction(_digits(above)) / Fraction(_digits(below)))
        if not re.fullmatch(FLOAT, text):
            raise _error(f"{text!r} is no number", node)
        if text[-1] in "fFnN":
            return float(text.replace(".", ""))
        value = float(text)
        if math.isinf(value):
            raise _error(f"{text} is too large for a float; write .inf if that is meant", node)
        return value

    def read_int(self, node: Any) -> int:
        """An int: decimal, 0o17 or 0xff."""
        text = self.construct_scalar(node)
        if re.fullmatch(AMBIGUOUS, text):
            self.refuse(node)
        if not re.fullmatch(INT, text):
            raise _error(f"{text!r} is no whole number", node)
        return int(text, 0)

    def refuse(self, node: Any) -> Any:
        """What readers of YAML disagree on."""
        text = node.value
        plain = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", text.replace("_", ""))
        why = "a number with _" if "_" in text else "a number that starts with 0"
        raise _error(f"{text}: {why} means different things to different readers: write {plain}, or quote it", node)

    def refuse_tag(self, node: Any) -> Any:
        """What is no plain data."""
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _error(f"{tag} is no plain value; write a number, a text, a list or fields without a tag", node)


class Writer(yaml.SafeDumper):
    """What Reader reads: the same scalars decide what must be quoted."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Values are written out wherever they stand."""
        return True

    def represent_text(self, data: str) -> Any:
        """Text; in double quotes, with escapes, where a character is not plainly visible."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_real(self, data: float) -> Any:
        """A float, exactly."""
        return self.represent_scalar("tag:yaml.org,2002:float", write_float(data))


Reader.yaml_constructors = {
    tag: made
    for tag, made in yaml.SafeLoader.yaml_constructors.items()
    if tag is not None and tag.rpartition(":")[2] in PLAIN
}
for tag, pattern, first in SCALARS:
    for side in (Reader, Writer):
        side.add_implicit_resolver(tag, re.compile(rf"(?:{pattern})\Z"), list(first))
# Text that YAML 1.1 takes for a boolean, a date or base 60: quoted, for those who read a run with another reader.
Writer.add_implicit_resolver("!elsewhere", re.compile(rf"(?:{ELSEWHERE})\Z"), list("yYnNoO=<-+0123456789"))
Reader.add_constructor("tag:yaml.org,2002:float", Reader.read_float)
Reader.add_constructor("tag:yaml.org,2002:int", Reader.read_int)
Reader.add_constructor("!ambiguous", Reader.refuse)
Reader.add_constructor(None, Reader.refuse_tag)
Writer.add_representer(str, Writer.represent_text)
Writer.add_representer(float, Writer.represent_real)
Writer.add_representer(tuple, Writer.represent_list)


def _refuse_circles(tree: Any, source: str, above: tuple[int, ...] = ()) -> None:
    """ConfigError where a node holds itself, by an alias."""
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if id(tree) in above:
        raise ConfigError(f"{source}: an alias stands inside the node that it names; write that out")
    for one in inside:
        _refuse_circles(one, source, (*above, id(tree)))


def _digits(text: str) -> str:
    """`4.` as Fraction wants it: it refuses a point without digits after it."""
    return f"{text}0" if text.endswith(".") else text


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _place(mark: yaml.Mark | None) -> str:
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _line(text: str, mark: yaml.Mark | None) -> str:
    """The line that a mark points into, and a caret below the place."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    return f"\n    {lines[mark.line]}\n    {' ' * mark.column}^"
