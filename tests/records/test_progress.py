"""What a run shows of itself: true rates, and nothing but text where nobody has a terminal."""

from __future__ import annotations

import io
import re

import pytest
from recorded_run import Expected

from robust_train.records.progress import Pace, Progress, duration


class Clock:
    """Time as a test says it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(mode: str = "auto", updates: int = 100, seconds: float = 2.0, done: int = 50, start: int = 0, **given) -> str:
    """What a run of constant pace has printed after some updates."""
    clock, stream = Clock(), given.pop("stream", io.StringIO())
    progress = Progress("demo", updates, mode, stream=stream, clock=clock, **given)
    progress.start()
    for update in range(start, done):
        clock.now += seconds
        progress.time({"images/s": 1234.0})
        progress.add(update, {"update": update, "loss": 1.5, "loss/clean": 0.5, "accuracy/train": 0.25})
    progress.stop()
    return stream.getvalue()


def test_the_pace_is_the_mean_time_of_an_update_without_the_first():
    clock = Clock()
    pace = Pace(clock)
    assert pace.seconds() is None
    for update, taken in enumerate((100.0, 2.0, 4.0)):  # the first compiles
        clock.now += taken
        pace.add(update)
    assert pace.seconds() == 3.0


def test_the_pace_survives_a_rollback_and_several_lines_of_one_update():
    clock = Clock()
    pace = Pace(clock)
    for update in (7, 8, 8, 9, 5, 6, 7):
        clock.now += 1
        pace.add(update)
    assert pace.seconds() == 1.0


def test_a_pace_that_changed_is_told_by_the_last_updates():
    clock = Clock()
    pace = Pace(clock)
    for update in range(500):
        clock.now += 9 if update < 250 else 1
        pace.add(update)
    assert pace.seconds() == 1.0


def test_elsewhere_than_on_a_terminal_lines_come_about_every_ten_seconds():
    lines = shown(seconds=2.0, done=50).splitlines()
    assert len(lines) == 10  # at 2, 12, ..., 92 seconds
    assert lines[-1] == (
        "update 46/100 (46 %), 1,234 images/s, loss 1.5, accuracy/train 0.25, 1 min 48 s left"
    )  # 54 updates of 2 s


def test_the_last_update_always_has_its_line():
    assert shown(seconds=0.01, done=100).splitlines()[-1].startswith("update 100/100 (100 %)")
    assert "left" not in shown(seconds=0.01, done=100).splitlines()[-1]


def test_the_last_update_is_printed_once():
    """Also where it is validated, and the run judged at its end: those say accuracies alone."""
    stream = io.StringIO()
    progress = Progress("demo", 3, "lines", stream=stream, clock=Clock())
    for start in (0, 2):  # the second time after a rollback to the last checkpoint
        for update in range(start, 3):
            progress.add(update, {"loss/robust": 0.5, "accuracy/attacked": 0.25})
        progress.add(2, {"accuracy/clean": 0.75, "validation/images": 8})
        progress.add(3, {"accuracy/clean": 0.5, "accuracy/pgd50": 0.125, "validation/images": 80})
        said = stream.getvalue().splitlines()
        assert [line.startswith("update 3/3 (100 %)") for line in said].count(True) == 1
        assert said[-2:] == [
            "after the last update: accuracy/clean 0.75",
            "after the last update: accuracy/clean 0.5, accuracy/pgd50 0.125",
        ]


def test_plain_lines_hold_no_control_characters():
    assert re.fullmatch(r"[\x20-\x7e\n]+", shown())


def test_the_forecast_is_kept_current():
    """54 updates of 2 s are left, on 2 devices: 216 device-seconds; at 5 kWh an hour 0.3 kWh."""
    text = shown(forecast=Expected(devices=2, rate=5.0)).splitlines()[-1]
    assert text.endswith("1 min 48 s left, 0.06 device-hours, 0.3 kWh")
    assert "1,234 images/s" in text
    clock, stream = Clock(), io.StringIO()
    progress = Progress("demo", 10, stream=stream, clock=clock, forecast=Expected(batch=64))
    for update in range(10):
        clock.now += 0.5
        progress.add(update, {"loss": 1.0})
    assert stream.getvalue().splitlines()[-1] == "update 10/10 (100 %), loss 1, 128 images/s"
    clock.now += 100
    progress.add(10, {"accuracy/clean": 0.5})  # the evaluation at the end is no update
    assert progress.pace.seconds() == 0.5


def test_a_resumed_run_goes_on_from_its_update():
    assert shown(start=80, done=90, seconds=20.0).splitlines()[0].startswith("update 81/100 (81 %)")


def test_on_a_terminal_a_bar_tells_the_same():
    text = shown(stream=Terminal(), done=100, updates=100)
    assert "demo" in text
    assert "100/100" in text
    assert "1,234 images/s" in text
    assert "accuracy/train" in text


def test_what_is_said_appears_also_above_a_bar_and_where_progress_is_off():
    for mode, stream in (("bar", Terminal()), ("lines", io.StringIO()), ("off", io.StringIO())):
        progress = Progress("demo", 10, mode, stream=stream)  # type: ignore[arg-type]
        progress.start()
        progress.say("W&B: [offline] 3/4")
        progress.stop()
        assert "W&B: [offline] 3/4\n" in stream.getvalue()


def test_off_shows_nothing():
    assert shown(mode="off") == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (190, "3 min 10 s"),
        (18120, "5 h 02 min"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said
