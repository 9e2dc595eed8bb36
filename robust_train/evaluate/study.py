"""What a study of variants, their ensemble and its student says: means over seeds, differences, the paper's claims.

Baidya et al. 2021 (arXiv 2110.10645). Over n seeds a figure is its mean and SE = sd / sqrt(n), sd by n - 1: what other
seeds would change, on the same images. Networks are compared within a seed and the differences averaged: what those of
a seed have in common cancels.

A difference d is beyond doubt where |d| > 2 SE. That is lenient: of no difference at all, n = 3 seeds say so in
1 - 2 / sqrt(6) = 18 % of cases (Student's t with n - 1 degrees), and claims about many categories look many times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Literal

from robust_train.data.corruptions import CATEGORIES, NAMES
from robust_train.evaluate.corruptions import Robustness, efficiency

FIGURES = ("clean", *CATEGORIES, "mean", "mean_of_categories")
"""Of a network: accuracy on clean images, by category, over the 15 corruptions, over the four categories."""

Outcome = Literal["yes", "no", "within 2 standard errors"]
YES: Outcome = "yes"
NO: Outcome = "no"
WITHIN: Outcome = "within 2 standard errors"
ROUNDING = 1e-12  # equal accuracies, summed in another order, differ by less


@dataclass(frozen=True)
class Spread:
    """A mean over seeds."""

    mean: float
    error: float | None  # standard error; None of one seed
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that are there; None where none is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
        return cls(fmean(known), error, len(known))

    @property
    def positive(self) -> Outcome | None:
        """Whether the mean is above 0 by more than 2 SE: yes; no: as far below 0; None of one seed."""
        if self.error is None:
            return None
        margin = 2 * self.error + ROUNDING
        return YES if self.mean > margin else NO if self.mean < -margin else WITHIN

    def said(self, sign: str = "") -> str:
        """In percent, or points of it: 51.2 +/- 0.8."""
        return f"{100 * self.mean:{sign}.1f}" + ("" if self.error is None else f" +/- {100 * self.error:.1f}")


@dataclass(frozen=True)
class Roles:
    """Which network of a study is what, by the names that it has in every seed."""

    members: tuple[str, ...]  # the variants that are ensembled
    ensemble: str | None = None
    base: str | None = None  # the plain network: gains are over it
    controls: tuple[str, ...] = ()  # ensembles as large, of networks that differ in nothing but their seed
    student: str | None = None  # taught by the ensemble
    standard: str | None = None  # the student's own network, taught by labels alone; it may be a member too
    control_student: str | None = None  # taught by the ensemble of plain networks

    def of(self, name: str) -> str:
        """What a network is called in tables; nothing where it only helps."""
        said: dict[str, tuple[str | None, ...]] = {"variant": self.members, "control": self.controls}
        said |= {"ensemble": (self.ensemble,), "base": (self.base,), "student": (self.student,)}
        said |= {"control student": (self.control_student,), "standard": (self.standard,)}
        return next((role for role, names in said.items() if name in names), "")

    @property
    def names(self) -> tuple[str, ...]:
        """All, in the order of tables and pictures."""
        ordered = (self.base, *self.members, self.standard, self.ensemble, *self.controls)
        each = (*ordered, self.student, self.control_student)
        return tuple(dict.fromkeys(name for name in each if name is not None))


@dataclass(frozen=True)
class Study:
    """Robustness of many networks, each in several seeds. What was not judged is absent from every figure."""

    results: Mapping[tuple[int, str], Robustness]  # by seed and name
    roles: Roles

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(sorted({seed for seed, _ in self.results}))

    @property
    def names(self) -> tuple[str, ...]:
        """Those judged in any seed: those with a role first."""
        there = dict.fromkeys(name for _, name in self.results)
        return tuple(dict.fromkeys([*(name for name in self.roles.names if name in there), *there]))

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Those judged anywhere, in the benchmark's order."""
        return tuple(name for name in NAMES if any(name in found.corruptions for found in self.results.values()))

    def values(self, name: str | None, column: str) -> dict[int, float]:
        """The accuracies by seed; column: one of FIGURES, or a corruption."""
        return {} if name is None else self._table.get((name, column), {})

    def spread(self, name: str, column: str) -> Spread | None:
        """Mean and standard error of an accuracy."""
        return Spread.of(self.values(name, column).values())

    def difference(self, one: str | None, other: str | None, column: str) -> Spread | None:
        """A_one - A_other within each seed that has both."""
        return Spread.of(_paired(self.values(one, column), self.values(other, column)).values())

    def over_best(self, column: str) -> Spread | None:
        """The ensemble less its best member, which is another one in each seed and column: a strict comparison."""
        each = [self.values(name, column) for name in self.roles.members]
        seeds = set.intersection(*(set(values) for values in each)) if each else set()
        best = {seed: max(values[seed] for values in each) for seed in seeds}
        return Spread.of(_paired(self.values(self.roles.ensemble, column), best).values())

    def gain(self, name: str) -> dict[str, Spread | None]:
        """(A - A_base) / A_base within each seed: of categories, corruptions, and over the 15 in both ways."""
        base = self.roles.base
        each = [
            found.gain(self.results[seed, base])
            for (seed, one), found in self.results.items()
            if one == name and base is not None and (seed, base) in self.results
        ]
        parts: dict[str, Spread | None] = {}
        parts |= {group: Spread.of(one.categories.get(group) for one in each) for group in CATEGORIES}
        parts |= {c: Spread.of(one.corruptions.get(c) for one in each) for c in self.corruptions}
        parts["mean_of_gains"] = Spread.of(one.mean_of_gains for one in each)
        parts["gain_of_means"] = Spread.of(one.gain_of_means for one in each)
        return parts

    def efficiency(self, column: str, base: str | None) -> dict[int, float]:
        """Of what the ensemble gains over `base` the share that the student keeps, by seed.

        It says something only where the ensemble gains: noise in a small gain makes it any number.
        """
        student, ensemble, below = (
            self.values(name, column) for name in (self.roles.student, self.roles.ensemble, base)
        )
        shares = {seed: efficiency(student.get(seed), below.get(seed), ensemble.get(seed)) for seed in self.seeds}
        return {seed: share for seed, share in shares.items() if share is not None}

    def differences(self) -> dict[str, Callable[[str], Spread | None]]:
        """What is compared with what, by its title: of a column the difference."""
        roles = self.roles
        found: dict[str, Callable[[str], Spread | None]] = {}
        if roles.ensemble is not None:
            found[f"{roles.ensemble} - best member"] = self.over_best
        pairs = [(roles.ensemble, other) for other in (roles.base, *roles.members, *roles.controls, roles.student)]
        pairs += [(roles.student, other) for other in (roles.base, roles.standard, roles.control_student)]
        for one, other in pairs:
            if one is not None and other is not None:
                found[f"{one} - {other}"] = lambda column, one=one, other=other: self.difference(one, other, column)  # type: ignore[misc]
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know beside the figures."""
        from scipy.stats import t

        count = len(self.seeds)
        if count < 2:
            return ("one seed: there are no standard errors, and no claim is decided",)
        chance = 2 * float(t.sf(2, count - 1))
        said = f"{count} seeds: of no difference at all, {chance:.0%} are beyond 2 standard errors"
        return (f"{said}; claims about several categories or networks look several times",)

    def tree(self) -> dict[str, Any]:
        """For JSON. Nothing is rounded; null stands where something was not judged."""
        columns = (*FIGURES, *self.corruptions)
        return {
            "seeds": list(self.seeds),
            "roles": {**asdict(self.roles), "members": list(self.roles.members), "controls": list(self.roles.controls)},
            "networks": {
                name: {
                    "role": self.roles.of(name),
                    "accuracy": {one: _tree(self.spread(name, one), self.values(name, one)) for one in columns},
                    "gain": {one: _tree(spread) for one, spread in self.gain(name).items()},
                }
                for name in self.names
            },
            "differences": {
                title: {one: _compared(of(one)) for one in columns} for title, of in self.differences().items()
            },
            "efficiency": {
                f"over {base}": {one: _share(self.efficiency(one, base)) for one in columns}
                for base in (self.roles.base, self.roles.standard)
                if base is not None
            },
            "claims": [claim.tree() for claim in claims(self)],
            "notes": list(self.notes),
        }

    @cached_property
    def _table(self) -> dict[tuple[str, str], dict[int, float]]:
        table: dict[tuple[str, str], dict[int, float]] = {}
        for (seed, name), found in sorted(self.results.items(), key=lambda item: item[0]):
            for column in (*FIGURES, *found.corruptions):
                value = _figure(found, column)
                if value is not None:
                    table.setdefault((name, column), {})[seed] = value
        return table


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what the study says of it."""

    claim: str
    outcome: Outcome | None  # None: not judged, or on one seed alone
    numbers: str  # that decide it, in words; differences in points of percent

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def claims(study: Study) -> tuple[Claim, ...]:
    """What of the paper holds, as far as there are networks to say so.

    yes: every difference that the claim is about is above 0 by more than 2 SE. no: one of them is below 0 by more than
    2 SE. Else within 2 SE: it may be so.

    That the student keeps a part of the gain, 0 < efficiency < 1, is judged by base < student < ensemble, which it
    means: the share itself has a noisy denominator. It is asked over the plain network, as in the paper, and over the
    student's own network taught by labels alone: all of that gain is due to teaching.
    """
    roles = study.roles
    found = _variants(study) if len(roles.members) > 1 else []
    if roles.ensemble is not None:
        if roles.members:
            found.append(_above(study, roles.ensemble, roles.members, "every member", CATEGORIES))
        for control in roles.controls:
            found.append(_above(study, roles.ensemble, [control], control, ["mean"]))
            found.append(_above(study, roles.ensemble, [control], control, CATEGORIES))
        for base in dict.fromkeys((roles.base, roles.standard)):
            if roles.student is not None and base is not None:
                found.append(_kept(study, base))
    if roles.student is not None and roles.control_student is not None:
        found.append(_above(study, roles.student, [roles.control_student], roles.control_student, ["mean"]))
    return tuple(found)


def all_of(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    """Whether all hold: one that does not refutes them, one that was not judged leaves them open."""
    each = list(outcomes)
    if NO in each:
        return NO
    if None in each or not each:
        return None
    return WITHIN if WITHIN in each else YES


def any_of(outcomes: Iterable[Outcome | None]) -> Outcome | None:
    """Whether one holds at least; no only where each one does not."""
    each = list(outcomes)
    if YES in each:
        return YES
    if None in each or not each:
        return None
    return WITHIN if WITHIN in each else NO


def _variants(study: Study) -> list[Claim]:
    """Each variant is above every other one in some category or corruption; and all of them are, each somewhere."""
    columns = [*CATEGORIES, *study.corruptions]
    each: list[Claim] = []
    for name in study.roles.members:
        others = [other for other in study.roles.members if other != name]
        where = {
            column: [study.difference(name, other, column) for other in others]
            for column in columns
            if study.values(name, column)
        }
        outcomes = {c: all_of(map(_positive, spreads)) for c, spreads in where.items()}
        clear = [column for column, outcome in outcomes.items() if outcome == YES]
        leads = [c for c, spreads in where.items() if c not in clear and all(one and one.mean > 0 for one in spreads)]
        said = f"clearly first in {_list(clear)}; first in the mean only in {_list(leads)}"
        each.append(Claim(f"{name} is above every other variant somewhere", any_of(outcomes.values()), said))
    held = sum(claim.outcome == YES for claim in each)
    whole = Claim(
        "each variant is above every other one in some category or corruption",
        all_of(claim.outcome for claim in each),
        f"{held} of {len(each)} variants are",
    )
    return [whole, *each]


def _above(study: Study, name: str, others: Iterable[str], title: str, columns: Iterable[str]) -> Claim:
    """A network is above all of some others in all of some columns."""
    found = {(other, column): study.difference(name, other, column) for other in others for column in columns}
    known = {at: spread for at, spread in found.items() if spread is not None}
    outcome = all_of(map(_positive, found.values()))
    across = {column for _, column in found}
    where = "over the 15 corruptions" if across == {"mean"} else "in every category"
    said = "not judged"
    if known:
        (other, column), least = min(known.items(), key=lambda item: item[1].mean)
        said = least.said("+")
        if len(known) > 1:
            clear = [sum(one.positive == kind for one in known.values()) for kind in (YES, NO)]
            beside = f"{column}, {other}" if len({other for other, _ in known}) > 1 else column
            said = f"least {said} ({beside}); of {len(found)} differences {clear[0]} clearly above, {clear[1]} below"
    return Claim(f"{name} is above {title} {where}", outcome, said)


def _kept(study: Study, base: str) -> Claim:
    """base < student < ensemble, over the 15."""
    student, ensemble = study.roles.student, study.roles.ensemble
    parts = {
        f"{student} - {base}": study.difference(student, base, "mean"),
        f"{ensemble} - {student}": study.difference(ensemble, student, "mean"),
    }
    shares = study.efficiency("mean", base)
    each = ", ".join(f"{share:.2f}" for share in shares.values())
    spread = Spread.of(shares.values())
    said = "not judged"
    if spread is not None:
        error = "" if spread.error is None else f" +/- {spread.error:.2f}"
        said = f"efficiency {spread.mean:.2f}{error} (by seed {each}); "
        said += ", ".join(f"{title} {one.said('+')}" for title, one in parts.items() if one is not None)
    return Claim(
        f"{student} keeps a part of what {ensemble} gains over {base}",
        all_of(map(_positive, parts.values())),
        said,
    )


def _positive(spread: Spread | None) -> Outcome | None:
    return None if spread is None else spread.positive


def _figure(found: Robustness, column: str) -> float | None:
    if column in CATEGORIES:
        return found.category(column)
    whole = {"clean": found.clean_accuracy, "mean": found.mean, "mean_of_categories": found.mean_of_categories}
    return whole[column] if column in whole else found.accuracy(column)


def _paired(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def _list(names: list[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names) or "none"


def _tree(spread: Spread | None, values: Mapping[int, float] | None = None) -> dict[str, Any] | None:
    if spread is None:
        return None
    more = {} if values is None else {"by_seed": {str(seed): value for seed, value in values.items()}}
    return {**asdict(spread), **more}


def _compared(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else {**asdict(spread), "positive": spread.positive}


def _share(shares: Mapping[int, float]) -> dict[str, Any] | None:
    return _tree(Spread.of(shares.values()), shares)
