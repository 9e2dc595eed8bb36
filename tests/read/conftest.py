"""A schedule that is registered while a test runs, and no longer: tests over the registry must not meet it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from robust_train.nouns import Schedule
from robust_train.read.registry import schedules


@dataclass(frozen=True)
class Toy(Schedule):
    """Always the same."""

    to: float

    def __call__(self, update: int, updates: int) -> float:
        return self.to


@pytest.fixture
def toy_schedule(monkeypatch):
    monkeypatch.setattr(schedules, "_known", dict(schedules._known))
    return schedules.register("toy")(Toy)
