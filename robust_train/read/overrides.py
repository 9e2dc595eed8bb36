"""`key=value` from the command line, laid over what the files say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from robust_train.read import yaml
from robust_train.read.errors import ConfigError
from robust_train.read.parse import Tree, merge

EXAMPLE = "write it like objective.attack.steps=7"


def apply(tree: Tree, overrides: Iterable[str]) -> Tree:
    """A new tree with each `dotted.path=value` merged in, from left to right.

    Values are YAML (`2/255`, `null`, `{use: timm, name: resnet18}`); numbers in a path count list entries from 0;
    parents that are missing are made. A node whose `use:` changes is replaced, and an override that would be lost by
    that is refused. Raises ConfigError.
    """
    before: list[str] = []
    for override in overrides:
        path, sign, text = override.partition("=")
        path = path.strip()
        if not sign or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", path):
            raise ConfigError(f"{override!r} is no override: {EXAMPLE}")
        if not text.strip():
            raise ConfigError(f"{override!r} has no value: write {path}=null for none, or {path}=\"''\" for empty text")
        value = yaml.read(text, f"override {path}")
        merged = _laid(tree, path.split("."), value, path)
        _keep(before, tree, merged, path, override)
        before.append(path)
        tree = merged
    return tree


def _laid(node: Any, path: list[str], value: Any, whole: str) -> Any:
    """`node` with `value` merged in at `path` below it."""
    if not path:
        return merge(node, value)
    name, rest = path[0], path[1:]
    if isinstance(node, list):
        if not name.isdigit() or int(name) >= len(node):
            raise ConfigError(
                f"{whole}: {name!r} is no entry of a list of {len(node)}; count from 0 to {len(node) - 1}"
            )
        entry = int(name)
        return [*node[:entry], _laid(node[entry], rest, value, whole), *node[entry + 1 :]]
    if isinstance(node, str):
        node = {"use": node}
    below = node.get(name) if isinstance(node, dict) else None
    return merge(node, {name: _laid(below, rest, value, whole)})


def _keep(before: list[str], tree: Tree, merged: Tree, path: str, override: str) -> None:
    """Refuse a change that drops what an earlier override said: order should not lose anything in silence."""
    for earlier in before:
        if earlier != path and _at(tree, earlier) != _at(merged, earlier) and not path.startswith(f"{earlier}."):
            raise ConfigError(f"{override} comes after {earlier}=... and would undo it: give it first")


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        if isinstance(tree, list):
            tree = tree[int(name)] if name.isdigit() and int(name) < len(tree) else None
        else:
            tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
