"""Schedules by their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from robust_train import job
from robust_train.attacks.pgd import PGD
from robust_train.check import check
from robust_train.engines.plain import PlainEngine
from robust_train.engines.schedule import Cosine, Linear, Ramp, Steps
from robust_train.nouns import Place, Schedule, at, within
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError
from robust_train.read.registry import schedules
from robust_train.settings.optimiser import Optimiser
from robust_train.threats.linf import Linf
from tests.toys import toy_run

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
    assert curve(Cosine(0.4, warmup="20%")) == curve(Cosine(0.4, warmup=20))


def test_steps_multiply_at_each_milestone() -> None:
    values = curve(Steps(0.1, milestones=("50%", 75)))
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
    values = curve(Linear(points=((0, 0.0), ("40%", 0.2), ("100%", 0.0))))
    assert values[0] == 0
    assert values[40] == pytest.approx(0.2)
    assert values[20] == pytest.approx(0.1)
    assert values[70] == pytest.approx(0.1)
    assert Linear(points=((0, 0.0), ("100%", 0.3)))(UPDATES, UPDATES) == pytest.approx(0.3)


def test_one_is_an_update_and_a_hundred_per_cent_the_whole_run() -> None:
    """Whatever schedule it stands in; and half an update more than 20 is 20.5, not a share."""
    assert Linear(points=((0, 0.0), (1, 0.3)))(1, UPDATES) == pytest.approx(0.3)
    assert Linear(points=((0, 0.0), ("100%", 0.3)))(1, UPDATES) == pytest.approx(0.003)
    for schedule in (Ramp(to=0.3, updates=1), Steps(3, milestones=(1,)), Cosine(0.3, warmup=1)):
        assert schedule(1, UPDATES) == pytest.approx(0.3)
    for schedule in (Ramp(to=0.3, updates="100%"), Cosine(0.3, warmup="100%")):
        assert schedule(50, UPDATES) == pytest.approx(0.15)
    assert Ramp(to=4.1, updates=20.5)(10, UPDATES) == pytest.approx(2)


def test_a_line_takes_two_points() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Linear(points=((0, 0.1),))


OUT_OF_ORDER = [  # each is in order in a run of 1,000 updates
    Linear(points=((0, 0.0), (50, 0.1), ("20%", 0.0))),
    Steps(0.1, milestones=(30, "5%")),
    Steps(0.1, milestones=("50%",), warmup=60),
    Cosine(0.1, warmup=101),
]


@pytest.mark.parametrize("schedule", OUT_OF_ORDER, ids=repr)
def test_points_that_come_out_of_order_for_a_runs_updates_are_refused_before_the_first(
    schedule: Schedule, tmp_path: Path
) -> None:
    run = toy_run(Plain(), tmp_path, updates=UPDATES, optimiser=Optimiser(lr=schedule))
    with pytest.raises(ConfigError, match=rf"(?s)100 updates.*run\.optimiser\.lr: {schedule.use} turns.*share"):
        check(run, 1)
    with pytest.raises(ConfigError, match="out of order"):
        job.do(run, PlainEngine, Place())
    check(replace(run, updates=1000), 1)


def test_every_schedule_that_is_out_of_order_is_named_with_its_place(tmp_path: Path) -> None:
    objective = Madry(PGD(Linf(Cosine(0.1, warmup=7)), 2, 0.05))
    run = toy_run(objective, tmp_path, updates=5, optimiser=Optimiser(lr=Cosine(0.1, warmup=6)))
    with pytest.raises(ConfigError, match=r"(?s)run\.objective\.attack\.threat\.eps.*run\.optimiser\.lr"):
        check(run, 1)


def test_a_schedule_stands_wherever_a_number_does() -> None:
    moving = Linf(Ramp(to=8 / 255, updates=10))
    assert at(moving, 5, UPDATES) == Linf(4 / 255)
    assert at(Linf(0.1), 5, UPDATES) == Linf(0.1)


def test_a_schedule_in_a_mapping_is_found_and_becomes_its_number() -> None:
    held = {"a": Cosine(1.0), "b": 2.0}
    assert at(held, 0, 10) == {"a": 1.0, "b": 2.0}
    assert [where for where, _ in within(held, Cosine, "options")] == ["options.a"]


def test_every_schedule_is_tested_here() -> None:
    assert set(schedules) == {"ramp", "cosine", "steps", "linear"}
