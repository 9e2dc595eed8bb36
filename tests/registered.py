"""The examples that stand with every registered class: what contract and law tests run over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from robust_train.nouns import Attack, Noun, Objective
from robust_train.read import yaml
from robust_train.read.parse import parse
from robust_train.read.registry import Registry, objectives
from tests.teachers import teacher
from tests.toys import SCRATCH

Root = TypeVar("Root", bound=Noun)


def written(cls: type[Noun]) -> list[dict[str, Any]]:
    """The trees of a class's own examples, not of a parent's."""
    text = vars(cls).get("examples", "")
    return [{"use": cls.use, **tree} for tree in yaml.read(text, f"{cls.__qualname__}.examples") or []]


def examples(registry: Registry[Root], networks: Mapping[str, str] | None = None) -> dict[str, Root]:
    """{pgd: the first of its examples, pgd-1: the next, ...} of every class; networks: what NETWORK/0 stands for."""
    found = {}
    for use, cls in registry.items():
        for number, tree in enumerate(written(cls)):
            found[f"{use}-{number}" if number else use] = parse(registry.root, _placed(tree, networks or {}), use)
    return found


def every_objective(steps: int) -> dict[str, Objective]:
    """The objectives' examples, with attacks of so many steps and teachers that are there."""
    networks = {"NETWORK/0": teacher(SCRATCH, 0), "NETWORK/1": teacher(SCRATCH, 1, noisy=True)}
    return {name: of_steps(objective, steps) for name, objective in examples(objectives, networks).items()}


def of_steps(value: Any, steps: int) -> Any:
    """`value` with every attack in it, however deep, of so many steps; of 1 where it refuses to have none."""
    if is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: of_steps(getattr(value, f.name), steps) for f in fields(value) if f.init}
        if isinstance(value, Attack) and "steps" in changes:
            try:
                return replace(value, **{**changes, "steps": steps})
            except ValueError:
                changes["steps"] = 1
        return replace(value, **changes)
    return tuple(of_steps(entry, steps) for entry in value) if isinstance(value, tuple) else value


def _placed(tree: Any, networks: Mapping[str, str]) -> Any:
    if isinstance(tree, dict):
        return {key: _placed(entry, networks) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [_placed(entry, networks) for entry in tree]
    return networks.get(tree, tree) if isinstance(tree, str) and re.match("NETWORK/", tree) else tree
