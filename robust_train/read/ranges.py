"""What numbers of a name may be, wherever in this project's classes they stand: a name means one thing.

Every number is finite. What else a class asks of its own fields stands in its __post_init__.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda value: value >= 0, "must not be negative")
POSITIVE: tuple[Callable[[float], bool], str] = (lambda value: value > 0, "must be positive")
COUNT: tuple[Callable[[float], bool], str] = (lambda value: value >= 1, "must be at least 1")
SHARE: tuple[Callable[[float], bool], str] = (lambda value: 0 <= value <= 1, "is not in [0, 1]")
BELOW_ONE: tuple[Callable[[float], bool], str] = (lambda value: 0 <= value < 1, "is not in [0, 1)")

OURS = "robust_train."  # elsewhere a name may mean something else

NAMED = {
    "batch": COUNT,
    "betas": BELOW_ONE,
    "chunk": COUNT,
    "cpus": NOT_NEGATIVE,
    "decay": SHARE,
    "devices": COUNT,
    "fall": SHARE,
    "images": COUNT,
    "lr": NOT_NEGATIVE,
    "momentum": NOT_NEGATIVE,
    "noise": NOT_NEGATIVE,
    "noise_factor": NOT_NEGATIVE,
    "patch_size": COUNT,
    "radii": POSITIVE,
    "rate": NOT_NEGATIVE,
    "restarts": NOT_NEGATIVE,
    "retries": NOT_NEGATIVE,
    "seed": NOT_NEGATIVE,
    "seeds": NOT_NEGATIVE,
    "sf_corr": (lambda value: -1 <= value <= 1, "is not in [-1, 1]"),
    "sf_max": POSITIVE,
    "sf_min": NOT_NEGATIVE,
    "smoothing": BELOW_ONE,
    "stem_stride": COUNT,
    "step_size": POSITIVE,
    "updates": COUNT,
    "views": COUNT,
    "weight": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "workers": NOT_NEGATIVE,
}


def refusals(instance: Any) -> list[tuple[str, str]]:
    """(field, what is wrong) of each number of a dataclass that its name does not allow."""
    found: list[tuple[str, str]] = []
    if not type(instance).__module__.startswith(OURS):
        return found
    for f in fields(instance):
        value = getattr(instance, f.name)
        wrong = _not_finite(value) or (refusal(f.name, value) if f.name in NAMED else None)
        if f.init and wrong:
            found.append((f.name, wrong))
    return found


def refusal(name: str, value: Any) -> str | None:
    """What is wrong with a value of that name; texts, schedules and none are not looked at."""
    allowed, words = NAMED[name]
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(one, (int, float)) and not isinstance(one, bool) and not allowed(one):
            return f"{one:g} {words}"
    return None


def _not_finite(value: Any) -> str | None:
    """What is wrong with a number, or with one in a list or a mapping, that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number that a run can have"
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((wrong for one in inside if (wrong := _not_finite(one))), None)
