"""A pytest plugin that tells, at a run's end, which tests take more processor time than their marks say.

Processor time of this process and of the children it has waited for, so that a busy machine changes little. It is told
and fails nothing: half as much again on another processor is no fault of a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

LIMITS = {"slow": 5.0, "long": 60.0}  # seconds from which a test wants the mark
SHOWN = 20


def spent() -> float:
    """Seconds of processor time so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def wanting(marks: set[str], seconds: float) -> str | None:
    """The mark that a test lacks: `slow` from 5 s on, `long` from 60 s on."""
    if "long" in marks:
        return None
    if seconds > LIMITS["long"]:
        return "long"
    return "slow" if seconds > LIMITS["slow"] and "slow" not in marks else None


BEGAN = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEGAN] = spent()  # what it is the first to ask for, it pays for


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        seconds = spent() - item.stash[BEGAN]
        lacks = wanting({mark.name for mark in item.iter_markers()}, seconds)
        if lacks:  # a property of the report, since that is what comes back from another process
            item.user_properties.append(("wants mark", (lacks, seconds)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = (report for group in terminalreporter.stats.values() for report in group)
    found = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "wants mark":
                found[report.nodeid] = value
    if found:
        terminalreporter.section("tests that want a mark (docs/testing.md)")
        for nodeid, (mark, seconds) in sorted(found.items(), key=lambda entry: -entry[1][1])[:SHOWN]:
            terminalreporter.line(f"{mark}: {seconds:.0f} s of processor time: {nodeid}")
