"""The evaluation of robustness: clean accuracy, attacks on each threat model, their union, curves, and flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.apgd import APGD
from robust_train.attacks.autoattack import DRAWS, STEPS, AutoAttack
from robust_train.attacks.chance import PASSES
from robust_train.attacks.combine import Restarts
from robust_train.attacks.cr import CR
from robust_train.attacks.pgd import PGD
from robust_train.evaluate import flags
from robust_train.evaluate.accuracy import refuse_unboxed
from robust_train.evaluate.report import Budget, Figure, Flag, Report
from robust_train.evaluate.signs import signs
from robust_train.evaluate.trial import CLEAN, Column, Trial, worst
from robust_train.evaluate.work import Found, Piece, Plan, Store, Verdicts, work
from robust_train.keyed import Key
from robust_train.nouns import Attack, Dataset, Evaluator, Place, Threat, number
from robust_train.read.errors import ConfigError
from robust_train.read.parse import tree_of
from robust_train.read.registry import evaluators
from robust_train.threats.ball import Ball

Kind = Literal["pgd", "autoattack", "autoattack-plus", "autoattack-rand", "cr", "apgd-ce", "apgd-dlr", "apgd-t"]
Watch = Callable[[Piece, Found, Plan, Store], None]
"""Told of each piece as it comes."""
Deal = Callable[[Plan, Mapping[Piece, Found]], Iterable[tuple[Piece, Found]]]
"""Who does the work elsewhere: on a cluster's devices."""


@evaluators.register("robustness")
@dataclass(frozen=True)
class Robustness(Evaluator):
    """Accuracy on clean images, under an attack in each threat model, and in the worst of them; with flags.

    An image counts as robust that is right when clean and after every attack. Every verdict is a fresh float32 forward,
    and a function of the image, its chunk and the seed, whatever the devices. A network with randomness of its own is
    attacked through the mean of gradients over draws, and its verdicts are means over passes: the report says so.
    """

    threats: tuple[Threat, ...]  # the sets of perturbations, each with its eps; the union of all is judged too
    attack: Kind = "pgd"  # pgd; autoattack, -plus, -rand; cr (linf only, an estimate); or one of autoattack's parts
    steps: int = 50  # of pgd: gradients per image and start
    step_size: float | None = None  # of pgd, in the threat's unit; null: 2.5 eps / steps
    restarts: int = 2  # of pgd: independent random starts; the worst counts
    curve: int = 4  # points of accuracy against eps up to 2 eps, by pgd with one start each; 0: no curve
    images: int | None = None  # the first so many validation images; null: all
    chunk: int = 256  # consecutive images that are attacked together
    passes: int = PASSES  # over which a verdict is averaged where a network has randomness of its own
    checks: int = 100  # images that the flags' own attacks are made on, the first of them; 0: none of those attacks
    points: bool = False  # keep every adversarial image, to save them

    examples = "- {threats: [{use: linf, eps: 0.1}, {use: l2, eps: 0.5}], steps: 2, images: 8}"

    def __post_init__(self) -> None:
        least = {"steps": 1, "restarts": 1, "curve": 0, "chunk": 1, "images": 1, "passes": 1, "checks": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}={value} must be at least {bound}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size={self.step_size:g} must be positive: it is how far a step goes")
        if not self.threats:
            raise ValueError("threats is empty: name one or more threat models, such as linf with eps 8/255")
        for threat in self.threats if self.attack != "pgd" else ():
            if not isinstance(threat, Ball) or (self.attack == "cr" and threat.use != "linf"):
                known = "linf" if self.attack == "cr" else "linf, l2 and l1"
                raise ValueError(f"attack={self.attack} knows {known}, not {threat.use}: use attack=pgd")

    def __call__(
        self,
        network: Any,
        data: Dataset,
        key: Key,
        device: Any = "cpu",
        watch: Watch | None = None,
        store: Callable[[Plan], Store] = lambda plan: Store(None, {}, plan),
        deal: Deal | None = None,
    ) -> Report:
        """Judge `network` on the validation images of `data`. Raises ConfigError where there are none."""
        return self.report(*self.verdicts(network, data, key, device, watch, store, deal))

    def verdicts(
        self,
        network: Any,
        data: Dataset,
        key: Key,
        device: Any = "cpu",
        watch: Watch | None = None,
        store: Callable[[Plan], Store] = lambda plan: Store(None, {}, plan),
        deal: Deal | None = None,
    ) -> tuple[Verdicts, Plan, tuple[Flag, ...]]:
        """Every verdict, what they were made by, and what was seen of the network beforehand."""
        first = next(filter(len, data.validation_batches(Place(), self.chunk, self.images)), None)
        if first is None:
            raise ConfigError("there are no images to judge: name validation shards (tools.eval: --data)")
        refuse_unboxed(first.scale, self.attack)
        classes = network.classes if hasattr(network, "classes") else data.classes
        seen = flags.looked(network, first.to(device), classes, key, self.tagged, self.attack)
        plan = self.plan(classes, key.seed, flags.random(seen))
        kept = store(plan)
        place = Place(device=str(device))
        pieces = work(network, data, plan, place, kept.done) if deal is None else deal(plan, kept.done)
        for at, found in pieces:
            kept.put(at, found)
            if watch is not None:
                watch(at, found, plan, kept)
        return kept.verdicts(), plan, seen

    def plan(self, classes: int, seed: int, stochastic: bool = False) -> Plan:
        """What is done to each chunk."""
        trials = [Trial(CLEAN, None, (), role="clean")]
        for tag, threat in self.tagged:
            before: tuple[str, ...] = (CLEAN,)
            row = []
            for attack in self.cascade(threat, classes, stochastic):
                row.append(Trial(f"{tag}/{attack.label}", attack, before, tag))
                before = (*before, row[-1].name)
            trials += row
            for eps in self.radii(threat) if self.curve else ():
                attack = self._pgd(threat, eps, None, 1, stochastic)
                trials.append(Trial(f"{tag}/curve/{eps:.4g}", attack, (CLEAN,), tag, "curve"))
            if self.checks:
                steps = self.steps if self.attack == "pgd" else STEPS
                trials += flags.checks(tag, threat, row, self.checks, steps, DRAWS if stochastic else 1)
        if self.checks:
            trials.append(flags.unbounded(self.checks, DRAWS if stochastic else 1))
        return Plan(
            tuple(trials), classes, self.chunk, self.images, seed, self.passes if stochastic else 1, self.points
        )

    @property
    def tagged(self) -> list[tuple[str, Threat]]:
        """The threat models by name, those of one kind told apart by eps."""
        kinds = [threat.use for threat in self.threats]
        return [
            (threat.use if kinds.count(threat.use) == 1 else f"{threat.use}-{_eps(threat):.4g}", threat)
            for threat in self.threats
        ]

    def cascade(self, threat: Threat, classes: int, stochastic: bool) -> tuple[Attack, ...]:
        """The attacks of one threat model, each made on the images that stand after those before it."""
        if self.attack == "pgd":
            return (self._pgd(threat, _eps(threat), self.step_size, self.restarts, stochastic),)
        assert isinstance(threat, Ball)
        if self.attack == "cr":
            return (CR(threat),)  # type: ignore[arg-type]
        if self.attack.startswith("autoattack"):
            version = "rand" if stochastic else self.attack.partition("-")[2] or "standard"
            return AutoAttack(threat, version).members(classes)  # type: ignore[arg-type]
        kind, draws = self.attack.removeprefix("apgd-"), DRAWS if stochastic else 1
        if kind == "t":
            return (APGD(threat, STEPS, targets=min(9, classes - 1), eot=draws),)
        return (APGD(threat, STEPS, kind, eot=draws),)  # type: ignore[arg-type]

    def radii(self, threat: Threat) -> list[float]:
        """Those of the curve: evenly up to 2 eps; for pixels up to 1 at most, where everything is allowed."""
        most = min(2 * _eps(threat), 1.0) if threat.use == "linf" else 2 * _eps(threat)
        return [most * (index + 1) / self.curve for index in range(self.curve)]

    def report(self, verdicts: Verdicts, plan: Plan, seen: tuple[Flag, ...]) -> Report:
        """The figures, which are sums of the verdicts and nothing else."""
        columns, count = verdicts.columns, len(verdicts.sample)
        clean = Figure("clean", _sum(columns[CLEAN].right), count, 0.0)
        figures, curves, budgets, last = [clean], [], [], {}
        for tag, threat in self.tagged:
            row = plan.of("attack", tag)
            shares = columns[row[-1].name].right
            for trial in row:
                figures.append(_figure(trial, columns[trial.name], count, part=len(row) > 1))
            if len(row) > 1:
                whole = {"use": self._name(plan), "attacks": [trial.name for trial in row]}
                figures.append(Figure(self._name(plan), _sum(shares), count, _eps(threat), whole, tag))
            last[f"{tag}/{figures[-1].name}"] = shares
            budgets += [_budget(trial, columns) for trial in row if bool((columns[trial.name].steps >= 0).any())]
            points = [_figure(trial, columns[trial.name], count) for trial in plan.of("curve", tag)]
            curves += [(clean, *points)] if points else []
        if len(last) > 1:
            shares, _ = worst([columns[plan.of("attack", tag)[-1].name] for tag, _ in self.tagged])
            figures.append(Figure("union", _sum(shares), count, None, {"use": "union", "of": list(last)}, "union"))
            last["union"] = shares
        table = verdicts.per_class([columns[CLEAN].right, *last.values()], plan.classes)
        raised = (*seen, *signs(verdicts, plan))
        return Report(tuple(figures), tuple(curves), tuple(budgets), (CLEAN, *last), table, raised)

    def _name(self, plan: Plan) -> str:
        """What the whole row of attacks is called."""
        return "autoattack-rand" if plan.draws > 1 else self.attack

    def _pgd(self, threat: Threat, eps: float, size: float | None, restarts: int, stochastic: bool) -> Attack:
        ball = replace(threat, eps=eps)  # type: ignore[type-var]
        step = 2.5 * eps / self.steps if size is None else size
        one = PGD(ball, self.steps, step, eot=DRAWS if stochastic else 1)
        return one if restarts == 1 else Restarts(one, restarts, draws=PASSES if stochastic else 1)


def _figure(trial: Trial, column: Column, images: int, part: bool = False) -> Figure:
    assert trial.attack is not None
    eps = _eps(trial.attack.threat)
    return Figure(trial.attack.label, _sum(column.right), images, eps, tree_of(trial.attack), trial.threat, part)


def _budget(trial: Trial, columns: Mapping[str, Column]) -> Budget:
    """Accuracy after 0, 1, 2, 5, 10, ... steps, from the step at which each image fell."""
    assert trial.attack is not None
    before, _ = worst([columns[name] for name in trial.after])
    after, spent = columns[trial.name].right, columns[trial.name].steps
    most = int(spent.amax())
    marks = sorted({0, most, *(m * 10**e for e in range(6) for m in (1, 2, 5) if m * 10**e < most)})
    fell = (after < before) & (spent >= 0)
    accuracy = (torch.where(fell & (spent <= mark), after, before).double().mean() for mark in marks)
    return Budget(trial.attack.label, trial.threat, tuple(marks), tuple(float(value) for value in accuracy))


def _sum(shares: Tensor) -> float:
    return float(shares.double().sum())


def _eps(threat: Any) -> float:
    """The radius of a threat model."""
    return number(threat.eps)
