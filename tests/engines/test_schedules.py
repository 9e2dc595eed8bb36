"""Schedules by their closed forms."""

from __future__ import annotations

import math

import pytest

from robust_train.engines.schedule import Cosine, Linear, Ramp, Steps
from robust_train.nouns import Schedule, at
from robust_train.read.registry import schedules
from robust_train.threats.linf import Linf

UPDATES = 100


def curve(schedule: Schedule) -> list[float]:
    return [schedule(update, UPDATES) for update in range(UPDATES)]


def test_cosine_is_half_a_period_between_peak_and_end() -> None:
    """Loshchilov and Hutter 2017, equation 5: halfway it is the mean, and it falls all the way."""
    values = curve(Cosine(0.4, end=0.1))
    assert values[0] == 0.4
    assert values[50] == pytest.approx((0.4 + 0.1) / 2)
    assert values[25] == pytest.approx(0.1 + 0.3 * (1 + math.sqrt(0.5)) / 2)
    assert values == sorted(values, reverse=True)
    assert Cosine(0.4, end=0.1)(UPDATES, UPDATES) == pytest.approx(0.1)
    assert Cosine(0.4, end=0.1)(2 * UPDATES, UPDATES) == pytest.approx(0.1)


def test_warm_up_is_a_straight_line_to_the_peak() -> None:
    values = curve(Cosine(0.4, warmup=20, start=0.2))
    assert values[:3] == pytest.approx([0.2, 0.21, 0.22])
    assert values[20] == 0.4
    assert values[60] == pytest.approx(0.2)  # halfway through what is left
    assert curve(Cosine(0.4, warmup=0.2)) == curve(Cosine(0.4, warmup=20))


def test_steps_multiply_at_each_milestone() -> None:
    values = curve(Steps(0.1, milestones=(0.5, 75)))
    assert values[0] == values[49] == 0.1
    assert values[50] == values[74] == pytest.approx(0.01)
    assert values[75] == values[99] == pytest.approx(0.001)
    assert curve(Steps(0.1, milestones=(50,), warmup=10))[:2] == pytest.approx([0, 0.01])


def test_a_ramp_waits_rises_and_stays() -> None:
    values = curve(Ramp(to=8, updates=40, wait=10, start=4))
    assert values[0] == values[10] == 4
    assert values[30] == pytest.approx(6)
    assert values[50] == values[99] == 8
    assert Ramp(to=8, updates=0)(0, UPDATES) == 8


def test_straight_lines_go_through_their_points() -> None:
    """The cyclic rate of fast training: 0, the peak at 40 %, 0 at the end."""
    values = curve(Linear(points=((0.0, 0.0), (0.4, 0.2), (1.0, 0.0))))
    assert values[0] == 0
    assert values[40] == pytest.approx(0.2)
    assert values[20] == pytest.approx(0.1)
    assert values[70] == pytest.approx(0.1)
    assert Linear(points=((0.0, 0.0), (1.0, 0.3)))(UPDATES, UPDATES) == pytest.approx(0.3)


def test_points_must_rise() -> None:
    with pytest.raises(ValueError, match="updates rising"):
        Linear(points=((10, 0.1), (5, 0.2)))
    with pytest.raises(ValueError, match="at least two"):
        Linear(points=((0, 0.1),))


def test_a_schedule_stands_wherever_a_number_does() -> None:
    moving = Linf(Ramp(to=8 / 255, updates=10))
    assert at(moving, 5, UPDATES) == Linf(4 / 255)
    assert at(Linf(0.1), 5, UPDATES) == Linf(0.1)


def test_every_schedule_is_tested_here() -> None:
    assert set(schedules) == {"ramp", "cosine", "steps", "linear"}
