"""Distances in a run: updates, or a share of the run's."""

from __future__ import annotations

import pytest

from robust_train.attacks.pgd import PGD
from robust_train.engines.schedule import Cosine
from robust_train.nouns import Schedule
from robust_train.read.errors import ConfigError
from robust_train.read.parse import dump, load_tree, parse, tree_of
from robust_train.read.span import due, updates_of
from robust_train.settings.keep import Keep
from robust_train.settings.validate import Probe, Validate
from robust_train.threats.linf import Linf


@pytest.mark.parametrize(
    ("share", "updates"), [("10%", 5000), ("2.5 %", 1250), (".5%", 250), ("0%", 0), ("100%", 50_000)]
)
def test_a_share_is_of_the_runs_updates_exactly(share: str, updates: int) -> None:
    assert updates_of(share, 50_000) == updates


def test_a_plain_number_is_updates_however_long_the_run() -> None:
    assert [updates_of(span, 7) for span in (0, 1, 1.5, 500)] == [0, 1, 1.5, 500]


@pytest.mark.parametrize("wrong", ["ten", "10", "-1%", "%", -1, True, None, float("nan"), [1], {"share": 0.1}])
def test_anything_else_is_refused_with_both_forms(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"warmup: expected a number of updates \(500\), or a share.*\(10%\), got"):
        parse(Schedule, {"use": "cosine", "peak": 0.1, "warmup": wrong})  # type: ignore[type-abstract]


def test_a_share_above_the_run_is_told_the_bound() -> None:
    with pytest.raises(ConfigError, match=r"warmup: expected a share of the run of 100% at most, got '110%'"):
        parse(Schedule, {"use": "cosine", "peak": 0.1, "warmup": "110%"})  # type: ignore[type-abstract]


def test_a_number_below_one_is_told_its_share() -> None:
    """0.1 updates are nobody's wish."""
    with pytest.raises(ConfigError, match=r"share of the run with its sign \(10%\), got 0.1"):
        parse(Schedule, {"use": "cosine", "peak": 0.1, "warmup": 0.1})  # type: ignore[type-abstract]
    with pytest.raises(ValueError, match=r"\(30%\)"):
        Cosine(0.1, warmup=0.3)(0, 10)


def test_what_is_read_is_written_as_it_was() -> None:
    tree = {"use": "linear", "points": [[0, 0.0], ["30%", 0.2], [500, 0.0]]}
    schedule = parse(Schedule, tree)  # type: ignore[type-abstract]
    assert tree_of(schedule) == tree
    assert parse(Schedule, load_tree(dump(schedule))) == schedule  # type: ignore[type-abstract]
    assert [dump(parse(Keep, {"every": every})) for every in ("10%", 20.0)] == [
        "{every: 10%, keep: 2}\n",
        "{every: 20, keep: 2}\n",
    ]


@pytest.mark.parametrize("kind", [Keep, Validate, Probe])
def test_checkpoints_validations_and_probes_come_every_share_of_the_run(kind: type) -> None:
    given = {"attack": PGD(Linf(0.1), 1, 0.1)} if kind is Probe else {}
    assert [u for u in range(40) if kind(every="25%", **given).due(u, 40)] == [9, 19, 29, 39]
    assert [u for u in range(40) if kind(every=10, **given).due(u, 40)] == [9, 19, 29, 39]
    assert not kind(**given).due(4, 40)
    assert [u for u in range(40) if kind(every="0%", **given).due(u, 40)] == ([39] if kind is Keep else [])
    for wrong, said in ((2.5, "whole"), (-1, "number of updates"), ("x%", "share"), (0.5, "50%")):
        with pytest.raises(ValueError, match=f"every.*{said}"):
            kind(every=wrong, **given)


def test_a_share_of_less_than_an_update_is_one() -> None:
    assert all(due("1%", update, 40) for update in range(40))
    assert not due(0, 0, 40)


@pytest.mark.parametrize("field", ["attack", "final", "probe"])
def test_an_attack_that_judges_does_not_change_over_the_run(field: str) -> None:
    """It is refused where the run is read: or hours later its first validation would end it, or its best be none."""
    eps = {"use": "ramp", "to": 0.1, "updates": "10%"}
    attack = {"use": "pgd", "threat": {"use": "linf", "eps": eps}, "steps": 2, "step_size": 0.05}
    tree = {"probe": {"attack": attack}} if field == "probe" else {field: attack}
    name = "attack" if field == "probe" else field
    with pytest.raises(ConfigError, match=rf"{name}\.threat\.eps is a schedule.*must not change.*Write the number"):
        parse(Validate, tree)
    attack["threat"] = {"use": "linf", "eps": 0.1}
    assert parse(Validate, tree)
