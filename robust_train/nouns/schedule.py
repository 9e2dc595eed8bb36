"""What a run names by `use:`, and numbers of it that change over the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


class Noun:
    """A thing that a run names by `use:`. Subclasses are frozen dataclasses, registered in their folder."""

    use: str = ""  # the registered name; set by the registry
    examples: str = ""
    """Small instances, as a YAML list of their fields: what the tests of every registered class try, and a reader sees.

    For images [1, 8, 8] and groups of 4. NETWORK/0 and NETWORK/1 stand for the checkpoints of two networks for such."""


class Schedule(Noun, ABC):
    """A number that changes over a run and stands wherever a number stands."""

    @abstractmethod
    def __call__(self, update: int, updates: int) -> float:
        """The number at `update` (from 0) of a run of `updates`."""

    def turns(self, updates: int) -> list[float]:
        """The updates where its pieces meet in a run of `updates`, in the order that they must come in."""
        return []


def at(value: Any, update: int, updates: int) -> Any:
    """`value` with each schedule in it, however deep, replaced by its number at `update` of `updates`."""
    if isinstance(value, Schedule):
        return value(update, updates)
    if is_dataclass(value) and not isinstance(value, type):
        now = {f.name: at(getattr(value, f.name), update, updates) for f in fields(value) if f.init}
        changed = {name: new for name, new in now.items() if new is not getattr(value, name)}
        return replace(value, **changed) if changed else value
    if isinstance(value, (tuple, list)):
        entries = [at(entry, update, updates) for entry in value]
        return value if all(new is old for new, old in zip(entries, value, strict=True)) else type(value)(entries)
    if isinstance(value, Mapping):
        named = {name: at(entry, update, updates) for name, entry in value.items()}
        return named if any(named[name] is not entry for name, entry in value.items()) else value
    return value


def within(value: Any, kind: type[Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Every instance of a kind in a value, however deep, with its place: ("objective.attack.threat.eps", Ramp(...))."""
    if isinstance(value, kind):
        yield where, value
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from within(getattr(value, f.name), kind, f"{where}.{f.name}" if where else f.name)
    elif isinstance(value, (tuple, list)):
        for place, entry in enumerate(value):
            yield from within(entry, kind, f"{where}[{place}]")
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from within(entry, kind, f"{where}.{name}" if where else str(name))


def number(value: float | Schedule) -> float:
    """A number that may be a schedule in a run, where it must be a number by now."""
    if isinstance(value, Schedule):
        raise ValueError(f"{value} stands where a number is needed: take at(..., update, updates) of its holder first")
    return value
