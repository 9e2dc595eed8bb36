"""Pydantic's schemas, made as strict as a run must be read.

No type is changed for another (an int may stand for a float), no key is left over, a YAML list becomes the tuple that
a field asks for, and where a field takes several types, mistakes are told of the one that was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import (
    ArgsKwargs,
    InitErrorDetails,
    PydanticCustomError,
    SchemaValidator,
    ValidationError,
    core_schema,
)

from robust_train.read.errors import nearest

NODE = "node"  # in a schema's metadata: it reads a mapping
BRANCH = "\0"  # first character of a union branch's name, in the place of an error; taken out when it is told
MEANT = {"mapping": f"{BRANCH}mapping", "list": f"{BRANCH}list", "scalar": f"{BRANCH}scalar"}


@cache
def validator(kind: Any) -> SchemaValidator:
    """What reads a tree as `kind`: a dataclass, a noun, or any type made of them."""
    return SchemaValidator(_strict(TypeAdapter(kind).core_schema))


def mistake(text: str, value: Any, *place: str | int) -> ValidationError:
    """One mistake at `place` below the node that is being read."""
    return ValidationError.from_exception_data("mistake", [_detail(text, value, place)])


def _detail(text: str, value: Any, place: tuple[str | int, ...]) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError("mistake", "{text}", {"text": text}), loc=place, input=value)


def _strict(schema: Any) -> Any:
    """A core schema with our strictness, from the leaves up. Schemas are dicts whose `type` is text."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if isinstance(schema, tuple):
        return tuple(_strict(entry) for entry in schema)
    if not isinstance(schema, dict):
        return schema
    schema = {key: entry if key in ("metadata", "default") else _strict(entry) for key, entry in schema.items()}
    match schema.get("type"):
        case "dataclass":
            return _dataclass(schema)
        case "tuple":
            return {**schema, "strict": False}  # YAML has lists only
        case "union":
            return _union(schema)
        case _:
            return schema


def _dataclass(schema: dict[str, Any]) -> dict[str, Any]:
    """No key left over; the refusal names the class and the nearest field."""
    cls = schema["cls"]
    names = [f.name for f in fields(cls) if f.init]

    def read(tree: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if isinstance(tree, ArgsKwargs) or not isinstance(tree, (Mapping, cls)):
            raise mistake(f"expected the fields of {cls.__name__}, got {shown(tree)}", tree)
        try:
            return inner(tree)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                "mistakes", [explained(line) for line in error.errors()]
            ) from None

    def explained(line: Any) -> InitErrorDetails:
        if line["type"] == "unexpected_keyword_argument" and len(line["loc"]) == 1:
            return _detail(
                f"no such field of {cls.__name__}{nearest(line['loc'][0], names)}", line["input"], line["loc"]
            )
        return _detail(told(line), line["input"], line["loc"])

    config = {**schema.get("config", {}), "strict": True, "extra_fields_behavior": "forbid"}
    inner = {**schema, "config": config, "strict": False}  # strict itself, it would take instances only
    outer = {"type": "function-wrap", "function": {"type": "no-info", "function": read}, "schema": inner}
    if "ref" in inner:
        outer["ref"] = inner.pop("ref")
    return {**outer, "metadata": {NODE: True}}


def _union(schema: dict[str, Any]) -> dict[str, Any]:
    """The branches by what is written for them: a mapping, a list, or a scalar."""
    choices: dict[str, list[Any]] = {}
    for choice in schema["choices"]:
        choice = choice[0] if isinstance(choice, tuple) else choice
        choices.setdefault(MEANT[_form(choice)], []).append(choice)
    if len(choices) == 1:
        return _told_once(schema)

    def meant(tree: Any) -> str:
        form = "mapping" if isinstance(tree, Mapping) or is_dataclass(tree) else "scalar"
        form = "list" if isinstance(tree, (list, tuple)) else form
        return next(MEANT[want] for want in (form, "scalar", "mapping", "list") if MEANT[want] in choices)

    branches = {
        name: found[0] if len(found) == 1 else _told_once({"type": "union", "choices": found})
        for name, found in choices.items()
    }
    return {"type": "tagged-union", "choices": branches, "discriminator": meant}


def _told_once(schema: dict[str, Any]) -> dict[str, Any]:
    """A union of alike forms: one mistake for all of its branches."""
    names = " or ".join(_name(choice) for choice in schema["choices"])
    return {**schema, "custom_error_type": "union", "custom_error_message": f"expected {names}"}


def _form(schema: dict[str, Any]) -> str:
    if schema.get("metadata", {}).get(NODE) or schema["type"] in ("dict", "definition-ref"):
        return "mapping"
    return "list" if schema["type"] in ("tuple", "list") else "scalar"


def _name(schema: Any) -> str:
    schema = schema[0] if isinstance(schema, tuple) else schema
    if schema["type"] == "literal":
        return " or ".join(repr(value) for value in schema["expected"])
    return str(schema["type"])


WANTED = {
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "none_required": "null",
}
REMEDIES = {"bool": ": write true or false", "str": ": put it in quotes"}  # for a scalar of another type


def told(line: Any) -> str:
    """What is wrong, of one line of pydantic's errors, in our words."""
    kind, value, context = line["type"], line["input"], line.get("ctx", {})
    if kind == "mistake":
        return context["text"]
    if kind == "value_error":  # from __post_init__, which knows the ranges
        return str(context["error"])
    if kind == "missing":
        return "missing; it has no default" if isinstance(line["loc"][-1], str) else "missing: the list is too short"
    if kind in WANTED:
        scalar = isinstance(value, (str, int, float))
        return f"expected {WANTED[kind]}, got {shown(value)}{REMEDIES.get(WANTED[kind], '') if scalar else ''}"
    if kind == "literal_error":
        return f"expected {context['expected']}, got {shown(value)}{nearest(value, _quoted(context['expected']))}"
    if kind == "too_long":
        return f"expected {context['max_length']} entries, got {context['actual_length']}"
    return f"{line['msg'][0].lower()}{line['msg'][1:]}, got {shown(value)}"


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def shown(value: Any) -> str:
    """A value and its type, as a mistake tells them."""
    return "null" if value is None else f"{value!r} ({type(value).__name__})"
