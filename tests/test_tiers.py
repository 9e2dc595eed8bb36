"""The tiers hold the lists: whatever is registered keeps a test of its own in `make test`; a method keeps its claim."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from robust_train.read.registry import registries
from tests.tiers import wanting

TESTS = Path(__file__).parent
CLASSES = [(noun, use) for noun, registry in registries.items() for use in registry]
CLAIMED = ("objectives",)  # nouns whose classes are methods with a claim


def marked(node: ast.AST, mark: str) -> bool:
    """Whether something in a decorator, or in `pytestmark`, is that mark."""
    return any(isinstance(one, ast.Attribute) and one.attr == mark for one in ast.walk(node))


def words(node: ast.AST) -> set[str]:
    """Every name that a piece of code says, and the words of its texts that may name a class: `use: pgd`, "pgd"."""
    found = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            found.add(one.id)
        elif isinstance(one, ast.arg):
            found.add(one.arg)  # a fixture
        elif isinstance(one, ast.Attribute):
            found.add(one.attr)
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            found |= {f"use: {name}" for name in re.findall(r"use:\s*([\w-]+)", one.value)}
            found.add(f"use: {one.value}")
    return found


def said(text: str) -> set[str]:
    """What the tests of a module say that are not `long`, by way of its own functions, fixtures and constants too."""
    said_by: dict[str, set[str]] = {}
    tests = []
    for node in ast.parse(text).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
            long = any(marked(one, "long") for one in node.decorator_list if not _of_one_parameter(one))
            if node.name.startswith("test_") and not long:
                tests.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            if "pytestmark" in names and marked(node, "long"):
                return set()
        for name in names:
            said_by[name] = said_by.get(name, set()) | words(node)
    found, ahead = set(tests), set(tests)
    while ahead:
        ahead = set().union(*(said_by.get(name, set()) for name in ahead)) - found
        found |= ahead
    return found


def _of_one_parameter(decorator: ast.expr) -> bool:
    """A `parametrize` in which some cases are long: the others are not."""
    return isinstance(decorator, ast.Call) and getattr(decorator.func, "attr", "") == "parametrize"


@cache
def said_in(folder: str) -> frozenset[str]:
    paths = sorted((TESTS / folder).rglob("test_*.py"))
    return frozenset().union(*(said(path.read_text(encoding="utf-8")) for path in paths))


@pytest.mark.parametrize(("noun", "use"), CLASSES)
def test_what_is_registered_keeps_a_test_that_names_it_in_make_test(noun: str, use: str) -> None:
    folder = "claims" if noun in CLAIMED else "."
    names = {registries[noun][use].__name__, f"use: {use}"}
    assert names & said_in(folder), f"no test in tests/{folder} names {' or '.join(names)}, those marked long aside"


def test_a_test_names_a_class_by_way_of_what_it_uses_and_a_long_one_does_not_count() -> None:
    text = """
PGDS = (PGD(1),)

def helper():
    return Madry(PGDS[0]), {"use: trades, x": 1}

@pytest.fixture
def given():
    return helper()

@MARK
def test_it(given):
    assert given
"""
    assert {"Madry", "PGD", "use: trades"} <= said(text.replace("@MARK", "@pytest.mark.slow"))
    assert "Madry" in said(text.replace("@MARK", "@pytest.mark.parametrize('x', [pytest.param(1, marks=mark.long)])"))
    assert not {"Madry", "PGD"} & said(text.replace("@MARK", "@pytest.mark.long"))
    assert not said("pytestmark = [pytest.mark.long]" + text.replace("@MARK", "@pytest.mark.slow"))


@pytest.mark.parametrize(
    ("marks", "seconds", "wants"),
    [(set(), 4, None), (set(), 6, "slow"), ({"slow"}, 6, None), ({"slow"}, 61, "long"), ({"slow", "long"}, 900, None)],
)
def test_a_test_is_told_the_mark_that_it_lacks(marks: set[str], seconds: float, wants: str | None) -> None:
    assert wanting(marks, seconds) == wants
