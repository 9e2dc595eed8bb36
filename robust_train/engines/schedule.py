"""Numbers that change over a run: warm-up, cosine, steps, piecewise linear.

Distances and places in a run are updates, whole or not, or shares of the run: `500`, `10%`. A schedule whose points
come out of order for a run's updates is refused before the first of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from robust_train.nouns import Schedule
from robust_train.read.registry import schedules
from robust_train.read.span import Span, updates_of


@schedules.register("ramp")
@dataclass(frozen=True)
class Ramp(Schedule):
    """A straight line from one number to another, then constant: eps warm-up, a growing beta.

    v(u) = start + (to - start) min(1, max(0, u - wait) / updates)
    """

    to: float  # the number at the end of the ramp, and after it
    updates: Span  # length of the ramp: updates, or a share of the run (10%)
    start: float = 0.0  # the number before the ramp
    wait: Span = 0  # before the ramp begins: updates, or a share of the run

    examples = "- {to: 2.0, updates: 4}"

    def __call__(self, update: int, updates: int) -> float:
        length = updates_of(self.updates, updates)
        done = 1.0 if length <= 0 else min(1.0, max(0.0, update - updates_of(self.wait, updates)) / length)
        return self.start + (self.to - self.start) * done

    def turns(self, updates: int) -> list[float]:
        return [updates_of(self.wait, updates), updates_of(self.wait, updates) + updates_of(self.updates, updates)]


@schedules.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up to a peak, then half a cosine down to the end of the run.

        v(u) = start + (peak - start) u / w                                    for u < w
        v(u) = end + (peak - end) (1 + cos(pi (u - w) / (U - w))) / 2          after it

    Loshchilov and Hutter 2017 (arXiv 1608.03983, equation 5) without restarts; w = warmup, U = the run's updates.
    """

    peak: float  # the largest value
    warmup: Span = 0  # length of the linear warm-up: updates, or a share of the run (10%)
    start: float = 0.0  # the value at update 0 of the warm-up
    end: float = 0.0  # the value that the last update approaches

    examples = "- {peak: 0.1, warmup: 2}"

    def __call__(self, update: int, updates: int) -> float:
        warmup = updates_of(self.warmup, updates)
        if update < warmup:
            return self.start + (self.peak - self.start) * update / warmup
        done = (update - warmup) / max(1.0, updates - warmup)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def turns(self, updates: int) -> list[float]:
        return [updates_of(self.warmup, updates), updates]


@schedules.register("steps")
@dataclass(frozen=True)
class Steps(Schedule):
    """A constant, multiplied by a factor at each milestone: the classical /10 at 50 % and 75 %.

    v(u) = value factor^(number of milestones <= u)
    """

    value: float  # the number before the first milestone
    milestones: tuple[Span, ...]  # where it is multiplied: updates, or shares of the run (50%)
    factor: float = 0.1  # what it is multiplied by
    warmup: Span = 0  # length of the linear warm-up from 0: updates, or a share of the run (10%)

    examples = "- {value: 0.1, milestones: [4, 8]}"

    def __call__(self, update: int, updates: int) -> float:
        warmup = updates_of(self.warmup, updates)
        if update < warmup:
            return self.value * update / warmup
        return self.value * self.factor ** sum(update >= place for place in self.turns(updates)[1:])

    def turns(self, updates: int) -> list[float]:
        return [updates_of(place, updates) for place in (self.warmup, *self.milestones)]


@schedules.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """Straight lines between points: the cyclic rate of fast training (0, then the peak, then 0), one-cycle, MSD's.

    Before the first point and after the last one it is constant.
    """

    points: tuple[tuple[Span, float], ...]  # (update or share of the run, value): [[0, 0], [30%, 0.2], [100%, 0]]

    examples = "- {points: [[0, 0.0], [4, 1.0]]}"

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"points={self.points} must be at least two (update, value) pairs")

    def turns(self, updates: int) -> list[float]:
        return [updates_of(place, updates) for place, _ in self.points]

    def __call__(self, update: int, updates: int) -> float:
        points = [(updates_of(place, updates), value) for place, value in self.points]
        if update <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in pairwise(points):
            if update < right:
                return low + (high - low) * (update - left) / (right - left)
        return points[-1][1]
