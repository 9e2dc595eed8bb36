"""Baidya et al. 2021 (arXiv 2110.10645): what a study of variants, ensemble and student says, on figures by hand."""

from __future__ import annotations

import json
import math

import pytest

from robust_train.data.corruptions import BENCHMARK, CATEGORIES, SEVERITIES
from robust_train.evaluate.corruptions import Robustness
from robust_train.evaluate.study import (
    NO,
    WITHIN,
    YES,
    Claim,
    Roles,
    Spread,
    Study,
    all_of,
    any_of,
    claims,
)

IMAGES = 1000
ROLES = Roles(("low", "high"), "ensemble", "plain", ("same",), "student", "standard", "plain student")
MIDDLING = {"low": 0.5, "high": 0.52, "ensemble": 0.6, "plain": 0.4, "same": 0.55} | {
    "student": 0.55,
    "standard": 0.5,
    "plain student": 0.5,
}


def judged(accuracy: float, clean: float | None = None, **changed: float) -> Robustness:
    """As accurate at every severity of the 15, but for categories or corruptions that are changed."""
    each = dict.fromkeys(BENCHMARK, accuracy)
    for name, value in changed.items():
        each |= dict.fromkeys(CATEGORIES.get(name, (name,)), value)
    counts = {(name, s): (round(IMAGES * value), IMAGES) for name, value in each.items() for s in SEVERITIES}
    return Robustness(counts, None if clean is None else (round(IMAGES * clean), IMAGES), 32)


def study(*shifts: float, roles: Roles = ROLES, **changed: dict[str, float] | float) -> Study:
    """A study of as many seeds as shifts: each seed's accuracies lie that much above `MIDDLING`, or what is changed."""
    found = {}
    for seed, shift in enumerate(shifts):
        for name, accuracy in MIDDLING.items():
            own = changed.get(name.replace(" ", "_"), {})
            own = own if isinstance(own, dict) else dict.fromkeys(CATEGORIES, own)
            found[seed, name] = judged(accuracy + shift, **{one: value + shift for one, value in own.items()})
    return Study(found, roles)


def said(found: Study) -> dict[str, Claim]:
    return {claim.claim: claim for claim in claims(found)}


# -- means and errors ------------------------------------------------------------------------------------


def test_the_standard_error_is_the_deviation_over_the_root_of_the_seeds():
    """1, 2, 3: mean 2, variance 1 by n - 1, SE 1 / sqrt 3."""
    spread = Spread.of([1.0, 2.0, 3.0, None])
    assert spread == Spread(2.0, pytest.approx(1 / math.sqrt(3)), 3)
    assert Spread.of([0.4]) == Spread(0.4, None, 1)
    assert Spread.of([]) is Spread.of([None]) is None
    assert Spread(0.5123, 0.0081, 3).said() == "51.2 +/- 0.8"
    assert Spread(0.0123, None, 1).said("+") == "+1.2"


@pytest.mark.parametrize(
    ("mean", "error", "outcome"),
    [
        (0.021, 0.01, YES),
        (0.019, 0.01, WITHIN),
        (0.0, 0.0, WITHIN),
        (1e-17, 0.0, WITHIN),
        (0.01, 0.0, YES),
        (-0.019, 0.01, WITHIN),
        (-0.021, 0.01, NO),
        (0.5, None, None),
    ],
)
def test_a_difference_is_beyond_doubt_where_it_is_more_than_two_standard_errors(mean, error, outcome):
    assert Spread(mean, error, 3).positive == outcome


def test_one_refutes_all_and_one_is_enough_for_some():
    assert all_of([YES, YES]) == any_of([NO, WITHIN, YES, None]) == YES
    assert all_of([YES, None, NO]) == any_of([NO, NO]) == NO
    assert all_of([YES, WITHIN]) == any_of([NO, WITHIN]) == WITHIN
    assert all_of([YES, WITHIN, None]) is any_of([NO, None]) is all_of([]) is any_of([]) is None


def test_accuracies_are_averaged_over_seeds():
    found = Study({(seed, "low"): judged(0.5 + seed / 10, clean=0.7, noise=0.2) for seed in range(3)}, Roles(("low",)))
    assert found.spread("low", "blur") == Spread(pytest.approx(0.6), pytest.approx(0.1 / math.sqrt(3)), 3)
    assert found.spread("low", "noise") == Spread(pytest.approx(0.2), pytest.approx(0), 3)
    assert found.spread("low", "clean") == Spread(pytest.approx(0.7), pytest.approx(0), 3)
    assert found.spread("low", "mean").mean == pytest.approx((3 * 0.2 + 12 * 0.6) / 15)
    assert found.spread("low", "mean_of_categories").mean == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert found.spread("low", "fog").mean == pytest.approx(0.6)
    assert found.spread("high", "fog") is None


def test_what_seeds_have_in_common_cancels_in_a_difference():
    """0.5, 0.6, 0.7 against 0.45, 0.55, 0.65: 5 points in every seed, though both vary by 10."""
    found = study(0.0, 0.1, 0.2, same=0.55)
    assert found.spread("ensemble", "mean").error == pytest.approx(0.1 / math.sqrt(3))
    difference = found.difference("ensemble", "same", "mean")
    assert difference == Spread(pytest.approx(0.05), pytest.approx(0, abs=1e-12), 3)


def test_only_seeds_that_have_both_are_compared():
    found = Study({(0, "a"): judged(0.5), (1, "a"): judged(0.9), (1, "b"): judged(0.8)}, Roles(("a", "b")))
    assert found.difference("a", "b", "blur") == Spread(pytest.approx(0.1), None, 1)
    assert found.difference("a", "c", "blur") is None
    assert found.difference("a", None, "blur") is None


def test_the_best_member_is_another_one_in_each_seed():
    """Best of (0.5, 0.6) and of (0.7, 0.4): the ensemble's 0.65 and 0.72 gain 5 and 2 points."""
    rows = {"low": (0.5, 0.7), "high": (0.6, 0.4), "ensemble": (0.65, 0.72)}
    found = Study({(s, name): judged(row[s]) for name, row in rows.items() for s in range(2)}, ROLES)
    assert found.over_best("blur").mean == pytest.approx(0.035)
    assert found.differences()["ensemble - best member"]("blur") == found.over_best("blur")


def test_gains_are_relative_to_the_base_of_their_own_seed_in_both_ways():
    """Seed 0: noise from 0.1 to 0.2 beside 0.6: gains of 1 in 3 of 15, means 0.5 to 0.52. Seed 1: nothing."""
    found = Study(
        {
            (0, "plain"): judged(0.6, noise=0.1),
            (0, "ensemble"): judged(0.6, noise=0.2),
            (1, "plain"): judged(0.3),
            (1, "ensemble"): judged(0.3),
            (2, "ensemble"): judged(0.9),  # no base in this seed
        },
        ROLES,
    )
    gain = found.gain("ensemble")
    assert gain["noise"] == Spread(pytest.approx(0.5), pytest.approx(0.5), 2)
    assert gain["shot_noise"].mean == pytest.approx(0.5)
    assert gain["mean_of_gains"].mean == pytest.approx((3 / 15) / 2)
    assert gain["gain_of_means"].mean == pytest.approx((0.02 / 0.5) / 2)
    assert found.gain("low")["noise"] is None


def test_the_efficiency_is_the_share_of_the_gain_in_each_seed():
    """Over plain (0.55 - 0.4) / (0.6 - 0.4) = 3/4; over the standard network 0.05 / 0.1 = 1/2."""
    found = study(0.0, 0.1)
    assert found.efficiency("mean", "plain") == pytest.approx({0: 0.75, 1: 0.75})
    assert found.efficiency("noise", "standard") == pytest.approx({0: 0.5, 1: 0.5})
    assert found.efficiency("mean", "ensemble") == {}, "no gain, no share"
    assert found.efficiency("mean", None) == {}


# -- claims --------------------------------------------------------------------------------------------------


def test_each_variant_wins_somewhere_or_does_not():
    held = said(study(0.0, 0.1, low={"noise": 0.8}))
    assert held["each variant is above every other one in some category or corruption"].outcome == YES
    low = held["low is above every other variant somewhere"]
    assert low.outcome == YES
    assert low.numbers.startswith("clearly first in noise, gaussian noise, shot noise, impulse noise;")
    fallen = said(study(0.0, 0.1))
    assert fallen["low is above every other variant somewhere"].outcome == NO
    assert fallen["high is above every other variant somewhere"].outcome == YES
    whole = fallen["each variant is above every other one in some category or corruption"]
    assert (whole.outcome, whole.numbers) == (NO, "1 of 2 variants are")
    level = said(study(0.0, 0.1, low=0.52))
    assert level["low is above every other variant somewhere"].outcome == WITHIN
    one = said(study(0.0, 0.1, low={"fog": 0.521}))["low is above every other variant somewhere"]
    assert (one.outcome, one.numbers[:25]) == (YES, "clearly first in fog; fir")


def test_the_ensemble_is_above_every_member_in_every_category_or_is_not():
    name = "ensemble is above every member in every category"
    assert said(study(0.0, 0.1))[name].outcome == YES
    assert said(study(0.0, 0.1))[name].numbers.startswith(
        "least +8.0 +/- 0.0 (noise, high); of 8 differences 8 clearly"
    )
    below = said(study(0.0, 0.1, low={"blur": 0.61}))[name]
    assert below.outcome == NO
    assert below.numbers == "least -1.0 +/- 0.0 (blur, low); of 8 differences 7 clearly above, 1 below"
    assert said(study(0.0, 0.1, low={"blur": 0.6}))[name].outcome == WITHIN


def test_the_ensemble_is_above_its_controls_or_is_not():
    held = said(study(0.0, 0.1, same={"digital": 0.65}))
    assert held["ensemble is above same over the 15 corruptions"].outcome == YES
    assert held["ensemble is above same over the 15 corruptions"].numbers == "+2.3 +/- 0.0"  # 0.05 - 0.1 * 4 / 15
    assert held["ensemble is above same in every category"].outcome == NO


def test_the_student_keeps_a_part_of_the_gain_or_does_not():
    name = "student keeps a part of what ensemble gains over {}"
    held = said(study(0.0, 0.1))
    assert held[name.format("plain")].outcome == held[name.format("standard")].outcome == YES
    assert "efficiency 0.75 +/- 0.00 (by seed 0.75, 0.75)" in held[name.format("plain")].numbers
    assert said(study(0.0, 0.1, student=0.65))[name.format("plain")].outcome == NO, "more than all"
    low = said(study(0.0, 0.1, student=0.45))
    assert low[name.format("plain")].outcome == YES
    assert low[name.format("standard")].outcome == NO, "less than by labels alone"
    assert said(study(0.0, 0.1, student=0.5))[name.format("standard")].outcome == WITHIN
    backwards = said(study(0.0, 0.1, ensemble=0.3, student=0.35))[name.format("plain")]
    assert backwards.outcome == NO, "a share of 1/2, but of a loss"
    assert "efficiency 0.50" in backwards.numbers


def test_the_student_is_above_the_plain_ensembles_student_or_is_not():
    name = "student is above plain student over the 15 corruptions"
    assert said(study(0.0, 0.1))[name].outcome == YES
    assert said(study(0.0, 0.1, plain_student=0.56))[name].outcome == NO


def test_one_seed_decides_no_claim():
    found = study(0.0)
    assert {claim.outcome for claim in claims(found)} == {None}
    assert found.notes == ("one seed: there are no standard errors, and no claim is decided",)
    assert "18% are beyond 2 standard errors" in study(0.0, 0.1, 0.2).notes[0]  # 1 - 2 / sqrt 6 = 0.1835


def test_what_was_not_judged_is_in_no_claim():
    """One category of one member in doubt leaves the claim open, unless another difference refutes it."""
    found = study(0.0, 0.1)
    partial = dict(found.results)
    for seed in range(2):
        cells = {cell: count for cell, count in partial[seed, "low"].counts.items() if cell[0] != "fog"}
        partial[seed, "low"] = Robustness(cells, None, 32)
    name = "ensemble is above every member in every category"
    assert said(Study(partial, ROLES))[name].outcome is None
    for seed in range(2):
        partial[seed, "ensemble"] = judged(0.3)
    assert said(Study(partial, ROLES))[name].outcome == NO
    assert claims(Study({(0, "low"): judged(0.5)}, Roles(("low",)))) == ()
    assert {c.numbers for c in claims(Study({(0, "low"): judged(0.5)}, ROLES)) if "student" in c.claim} == {
        "not judged"
    }


def test_all_of_it_can_be_written_down():
    found = study(0.0, 0.1)
    tree = found.tree()
    assert json.loads(json.dumps(tree)) == tree
    assert list(tree["networks"]) == [
        "plain",
        "low",
        "high",
        "standard",
        "ensemble",
        "same",
        "student",
        "plain student",
    ]
    assert tree["networks"]["low"]["role"] == "variant"
    low = tree["networks"]["low"]["accuracy"]
    assert low["noise"] == {
        "mean": pytest.approx(0.55),
        "error": pytest.approx(0.05),
        "seeds": 2,
        "by_seed": {"0": pytest.approx(0.5), "1": pytest.approx(0.6)},
    }
    assert low["clean"] is None
    assert tree["differences"]["student - plain student"]["mean"]["positive"] == YES
    assert tree["efficiency"]["over standard"]["mean"]["mean"] == pytest.approx(0.5)
    assert len(tree["claims"]) == len(claims(found)) == 9
    assert tree["roles"]["controls"] == ["same"]
