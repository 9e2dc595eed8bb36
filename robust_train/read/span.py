"""Distances in a run, as a run is written: `500` updates, or `10%` of the run's.

A plain number is always updates. A share is text with a per cent sign, so that a run made longer or shorter keeps it.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from robust_train.read.strict import shown

SHARE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?%")


def read(written: Any) -> float | str:
    """A span as it is written. Raises ValueError where it is none."""
    if refusal := _refusal(written):
        raise ValueError(f"{refusal}, got {shown(written)}")
    if isinstance(written, str):
        return written
    return int(written) if written == int(written) else written


Span = Annotated[float | str, read]
"""A distance in a run, or a place in it: a number of updates, or a share of the run's such as `10%`."""


def updates_of(span: Span, updates: int) -> float:
    """A span as a number of updates, whole or not, in a run of `updates`. Raises ValueError where it is no span."""
    if refusal := _refusal(span):
        raise ValueError(refusal)
    if isinstance(span, str):
        return _percent(span) * updates / 100  # in this order: 10 % of 50,000 is 5,000 and no rounding beside it
    return span


def due(every: Span, update: int, updates: int) -> bool:
    """Whether what comes every so many updates comes after `update` (from 0); a share is rounded to whole updates."""
    distance = updates_of(every, updates)
    return distance > 0 and (update + 1) % max(1, round(distance)) == 0


def whole(name: str, every: Span) -> None:
    """Refuse a distance between two events that is neither a share nor a whole number. Raises ValueError."""
    refusal = _refusal(every)
    if refusal is None and not isinstance(every, str) and every != int(every):
        refusal = "must be a whole number of updates"
    if refusal is not None:
        raise ValueError(f"{name}={every} {refusal}" if refusal.startswith("must") else f"{name}: {refusal}")


def _refusal(span: object) -> str | None:
    """What is wrong with a span, if anything is."""
    if isinstance(span, str) and SHARE.fullmatch(span) and _percent(span) <= 100:
        return None
    if isinstance(span, str) and SHARE.fullmatch(span):
        return "expected a share of the run of 100% at most"
    number = isinstance(span, (int, float)) and not isinstance(span, bool) and math.isfinite(span) and span >= 0
    if number and 0 < span < 1:  # type: ignore[operator]
        return f"expected updates (500), or a share of the run with its sign ({100 * span:g}%)"  # type: ignore[operator]
    return None if number else "expected a number of updates (500), or a share of the run (10%)"


def _percent(share: str) -> float:
    found = SHARE.fullmatch(share)
    assert found is not None, "refused before"
    return float(found[1])
