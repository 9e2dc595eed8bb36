"""Numbers that change over a run: warm-up, cosine, steps, piecewise linear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from robust_train.nouns import Schedule
from robust_train.read.registry import schedules


def span(length: float, updates: int) -> float:
    """A length in updates: itself, or that fraction of the run where it is below 1."""
    return length * updates if 0 < length < 1 else length


@schedules.register("ramp")
@dataclass(frozen=True)
class Ramp(Schedule):
    """A straight line from one number to another, then constant: eps warm-up, a growing beta.

    v(u) = start + (to - start) min(1, max(0, u - wait) / updates)
    """

    to: float  # the number at the end of the ramp, and after it
    updates: float  # length of the ramp, in updates; below 1: a fraction of the run
    start: float = 0.0  # the number before the ramp
    wait: float = 0.0  # updates before the ramp begins; below 1: a fraction of the run

    examples = "- {to: 2.0, updates: 4}"

    def __call__(self, update: int, updates: int) -> float:
        length = span(self.updates, updates)
        done = 1.0 if length <= 0 else min(1.0, max(0.0, update - span(self.wait, updates)) / length)
        return self.start + (self.to - self.start) * done


@schedules.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up to a peak, then half a cosine down to the end of the run.

        v(u) = start + (peak - start) u / w                                    for u < w
        v(u) = end + (peak - end) (1 + cos(pi (u - w) / (U - w))) / 2          after it

    Loshchilov and Hutter 2017 (arXiv 1608.03983, equation 5) without restarts; w = warmup, U = the run's updates.
    """

    peak: float  # the largest value
    warmup: float = 0.0  # updates of linear warm-up; below 1: a fraction of the run
    start: float = 0.0  # the value at update 0 of the warm-up
    end: float = 0.0  # the value that the last update approaches

    examples = "- {peak: 0.1, warmup: 2}"

    def __call__(self, update: int, updates: int) -> float:
        warmup = span(self.warmup, updates)
        if update < warmup:
            return self.start + (self.peak - self.start) * update / warmup
        done = (update - warmup) / max(1.0, updates - warmup)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


@schedules.register("steps")
@dataclass(frozen=True)
class Steps(Schedule):
    """A constant, multiplied by a factor at each milestone: the classical /10 at 50 % and 75 %.

    v(u) = value factor^(number of milestones <= u)
    """

    value: float  # the number before the first milestone
    milestones: tuple[float, ...]  # updates at which it is multiplied; below 1: fractions of the run
    factor: float = 0.1  # what it is multiplied by
    warmup: float = 0.0  # updates of linear warm-up from 0; below 1: a fraction of the run

    examples = "- {value: 0.1, milestones: [4, 8]}"

    def __call__(self, update: int, updates: int) -> float:
        warmup = span(self.warmup, updates)
        if update < warmup:
            return self.value * update / warmup
        return self.value * self.factor ** sum(update >= span(milestone, updates) for milestone in self.milestones)


@schedules.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """Straight lines between points: the cyclic rate of fast training (0, then the peak, then 0), one-cycle, MSD's.

    points: (update, value) pairs in rising order of update; below 1, and 1.0 itself, updates are fractions of the run.
    """

    points: tuple[tuple[float, float], ...]  # (update or fraction of the run, value)

    examples = "- {points: [[0, 0.0], [4, 1.0]]}"

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        if len(places) < 2 or places != sorted(places):
            raise ValueError(f"points={self.points} must be at least two (update, value) pairs, updates rising")

    def __call__(self, update: int, updates: int) -> float:
        points = [(updates if place == 1.0 else span(place, updates), value) for place, value in self.points]
        if update <= points[0][0]:
            return points[0][1]
        for (left, low), (right, high) in pairwise(points):
            if update < right:
                return low + (high - low) * (update - left) / (right - left)
        return points[-1][1]
