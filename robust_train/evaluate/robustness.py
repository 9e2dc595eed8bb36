"""The evaluation of robustness: clean accuracy, attacks on each threat model, their union, curves, and flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

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
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import COSTS, Budget, Figure, Flag, Report
from robust_train.evaluate.signs import classes_in_order, images_for, signs
from robust_train.evaluate.trial import CLEAN, Column, Trial, tried, worst
from robust_train.evaluate.verdicts import Plan, Verdicts, pictured
from robust_train.evaluate.work import Tell, evaluate, silent
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, Dataset, Evaluator, Piece, Tensors, Threat, number
from robust_train.read.errors import ConfigError
from robust_train.read.parse import tree_of
from robust_train.read.registry import evaluators
from robust_train.threats.ball import Ball

Kind = Literal["pgd", "autoattack", "autoattack-plus", "autoattack-rand", "cr", "apgd-ce", "apgd-dlr", "apgd-t"]
LOOKED = "looked"  # the piece that says what was seen of the network beforehand


@dataclass(frozen=True)
class Look:
    """What is looked at in a network before it is attacked, on the first chunk."""

    classes: int  # of the network
    threats: tuple[tuple[str, Threat], ...]  # by their tags
    attack: str


@dataclass(frozen=True)
class Tried:
    """A trial, and how many passes each of its verdicts is a mean of."""

    trial: Trial
    draws: int


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
    attacks: tuple[Attack, ...] = ()  # in its place: each by itself, in its own of the threats; the worst counts
    steps: int = 50  # of pgd: gradients per image and start
    step_size: float | None = None  # of pgd, in the threat's unit; null: 2.5 eps / steps
    restarts: int = 2  # of pgd: independent random starts; the worst counts
    curve: int = 4  # points of accuracy against eps up to 2 eps, by pgd with one start each; 0: no curve
    images: int | None = None  # the first so many validation images; null: all
    chunk: int = 256  # consecutive images that are attacked together
    passes: int = PASSES  # over which a verdict is averaged where a network has randomness of its own
    checks: int = 100  # images that the flags' own attacks are made on, the first of them; 0: none of those attacks
    sees: float | None = None  # share of the images that the flags have to see, such as 0.0025: on 3 / sees images then
    points: bool = False  # keep every adversarial image, to save them

    examples = "- {threats: [{use: linf, eps: 0.1}, {use: l2, eps: 0.5}], steps: 2, images: 8}"
    harmless: ClassVar[tuple[str, ...]] = (  # what of it decides a verdict stands in its trials
        "threats",
        "attack",
        "attacks",
        "steps",
        "step_size",
        "restarts",
        "curve",
        "images",
        "chunk",
        "passes",
        "checks",
        "sees",
        "points",
    )

    def __post_init__(self) -> None:
        least = {"steps": 1, "restarts": 1, "curve": 0, "chunk": 1, "images": 1, "passes": 1, "checks": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}={value} must be at least {bound}")
        if self.sees is not None and (not 0 < self.sees <= 1 or not self.checks):
            raise ValueError(
                f"sees={self.sees:g} with checks={self.checks}: it is a share of the images in (0, 1] that the flags' "
                "attacks have to see, so checks must not be 0"
            )
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size={self.step_size:g} must be positive: it is how far a step goes")
        if not self.threats:
            raise ValueError("threats is empty: name one or more threat models, such as linf with eps 8/255")
        for attack in self.attacks:
            if not any(attack.reach() == (threat,) for threat in self.threats):
                reached = " and ".join(f"{one.use} of eps {_eps(one):.4g}" for one in attack.reach())
                asked = " and ".join(f"{one.use} of eps {_eps(one):.4g}" for one in self.threats)
                raise ValueError(
                    f"{attack.label} finds points in {reached}, and what is asked is {asked}: give it that threat model"
                )
        for threat in self.threats:
            if self.attacks and all(attack.reach() != (threat,) for attack in self.attacks):
                raise ValueError(f"no attack is in {threat.use} of eps {_eps(threat):.4g}: name one, or leave it out")
        for threat in self.threats if self.attack != "pgd" and not self.attacks else ():
            if not isinstance(threat, Ball) or (self.attack == "cr" and threat.use != "linf"):
                known = "linf" if self.attack == "cr" else "linf, l2 and l1"
                raise ValueError(f"attack={self.attack} knows {known}, not {threat.use}: use attack=pgd")

    def __call__(self, network: Any, data: Dataset, key: Key, device: str = "cpu", tell: Tell = silent) -> Report:
        """Judge `network` on the validation images of `data`, keeping nothing. Raises ConfigError for none."""
        return self.report(evaluate(self, {"": network}, data, key.seed, device, tell=tell))

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> tuple[Piece, ...]:
        """A look at the network; then, as that says whether it answers at random, every trial."""
        (network,) = networks.values()
        classes: int = network.classes if isinstance(network, (Network, Ensemble)) else data.classes
        look, looks = Look(classes, tuple(self.tagged), self._kind), []
        for chunk in range(-(-(self.images or data.validation_size()) // self.chunk)):  # the first with a sound image
            name = f"{LOOKED}/{chunk}" if chunk else LOOKED
            looks.append(Piece(name, look, images=(chunk + 1) * self.chunk, cost=0.0))
            if name not in found:
                return tuple(looks)
            if found[name]:
                break
        plan = self.plan(classes, flags.random(_seen(found)))
        holds = ("apart/points",) if self.points else ()
        return (*looks, *(self._piece(trial, plan, holds) for trial in plan.trials))

    def _piece(self, trial: Trial, plan: Plan, holds: tuple[str, ...]) -> Piece:
        last = plan.of("attack", trial.threat)[-1:] == [trial]
        tally = CLEAN if trial.role == "clean" else trial.threat if last else ""
        holds = holds if trial.role in ("clean", "attack") else ()
        own = {
            "needs": trial.after,
            "images": trial.images,
            "holds": holds,
            "cost": trial.cost(plan.draws),
            "tally": tally,
        }
        by_row = plan.draws == 1 and trial.by_row  # a network with draws of its own is seeded by its chunk
        return Piece(trial.name, Tried(trial, plan.draws), by_row=by_row, **own)  # type: ignore[arg-type]

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, Tensor]:
        """Of a trial its column; of an attack also images worth a look, and with `points` every point."""
        (network,), what = networks.values(), piece.what
        if isinstance(what, Look):
            refuse_unboxed(batch.scale, what.attack)
            seen = flags.looked(network, batch, what.classes, key, what.threats, what.attack)
            text = json.dumps([flag.tree() for flag in seen])
            return {"flags": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}
        trial = what.trial
        earlier = [_column(before[name])[: len(batch)] for name in trial.after] if trial.attack is not None else []
        column, points = tried(network, batch, trial, earlier, key, what.draws)
        made = {name: tensor for name, tensor in vars(column).items() if tensor is not None}
        made["steps"] = column.steps.to(torch.int32)
        made = {name: tensor.contiguous() for name, tensor in made.items()}
        if trial.role == "attack":
            shown = pictured(column, batch.images, points, batch.sample, labels_of(batch.targets))
            made |= {f"picture/{name}": tensor for name, tensor in shown.items()}
        return made | ({"apart/points": points.float()} if piece.holds else {})

    def read(self, found: Columns) -> tuple[Verdicts, Plan, tuple[Flag, ...]]:
        """What was found as verdicts, what they were made by, and what was seen of the network beforehand."""
        seen, what = _seen(found), found.pieces[LOOKED].what
        plan = self.plan(what.classes, flags.random(seen))
        columns = {trial.name: _column(found[trial.name]) for trial in plan.trials if found.get(trial.name)}
        pictures = {trial.name: found.pictures(trial.name) for trial in plan.trials if trial.role == "attack"}
        return Verdicts(*found.rows(), columns, pictures), plan, seen

    def plan(self, classes: int, stochastic: bool = False) -> Plan:
        """What is done to each chunk."""
        trials = [Trial(CLEAN, None, (), role="clean")]
        for tag, threat in self.tagged:
            before: tuple[str, ...] = (CLEAN,)
            row: list[Trial] = []
            for attack in self.cascade(threat, classes, stochastic):
                names = (f"{tag}/{attack.label}{f'-{n}' if n > 1 else ''}" for n in range(1, len(row) + 2))
                row.append(Trial(next(n for n in names if n not in before), attack, before, tag))
                before = (*before, row[-1].name)
            if self.attacks:  # each by itself: what it finds is its own, whoever came before it
                row = [replace(trial, after=(CLEAN,)) for trial in row]
            trials += row
            for eps in self.radii(threat) if self.curve else ():
                attack = self._pgd(threat, eps, None, 1, stochastic)
                trials.append(Trial(f"{tag}/curve/{eps:.4g}", attack, (CLEAN,), tag, "curve"))
            if self.checks:
                steps = self.steps if self._kind == "pgd" else STEPS
                trials += flags.checks(tag, threat, row, self._checked, steps, DRAWS if stochastic else 1)
        if self.checks:
            trials.append(flags.unbounded(self._checked, DRAWS if stochastic else 1))
        return Plan(tuple(trials), classes, self.passes if stochastic else 1, self.sees)

    @property
    def tagged(self) -> list[tuple[str, Threat]]:
        """The threat models by name, those of one kind told apart by eps, those whose eps reads alike by a number."""
        kinds = [threat.use for threat in self.threats]
        made: dict[str, Threat] = {}
        for threat, kind in zip(self.threats, kinds, strict=True):
            tag = kind if kinds.count(kind) == 1 else f"{kind}-{_eps(threat):.4g}"
            names = (tag, *(f"{tag}-{number}" for number in range(2, len(kinds) + 1)))
            made[next(name for name in names if name not in made)] = threat
        return list(made.items())

    def cascade(self, threat: Threat, classes: int, stochastic: bool) -> tuple[Attack, ...]:
        """The attacks of one threat model, each made on the images that stand after those before it; those given by
        themselves."""
        if self.attacks:
            return tuple(attack for attack in self.attacks if attack.reach() == (threat,))
        if self.attack == "pgd":
            return (self._pgd(threat, _eps(threat), self.step_size, self.restarts, stochastic),)
        assert isinstance(threat, Ball)
        if self.attack == "cr":
            return (CR(threat, draws=DRAWS if stochastic else 1),)  # type: ignore[arg-type]
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

    def report(self, found: Columns) -> Report:
        """The figures, which are sums of the verdicts and nothing else."""
        verdicts, plan, seen = self.read(found)
        columns, count = verdicts.columns, len(verdicts.sample)
        clean = Figure("clean", _sum(columns[CLEAN].right), count, 0.0)
        figures, curves, budgets, last = [clean], [], [], {}
        for tag, threat in self.tagged:
            row = plan.of("attack", tag)
            shares, _ = worst([columns[trial.name] for trial in row])
            for trial in row:
                figures.append(_figure(trial, columns[trial.name], count, part=len(row) > 1))
            if len(row) > 1:
                whole = {"use": self._name(plan), "attacks": [trial.name for trial in row]}
                cost = _cost([columns[trial.name] for trial in row])
                figures.append(Figure(self._name(plan), _sum(shares), count, _eps(threat), whole, tag, cost=cost))
            last[f"{tag}/{figures[-1].name}"] = shares
            budgets += [_budget(trial, columns) for trial in row if bool((columns[trial.name].steps >= 0).any())]
            points = [_figure(trial, columns[trial.name], count) for trial in plan.of("curve", tag)]
            curves += [(clean, *points)] if points else []
        if len(last) > 1:
            shares, _ = worst([columns[trial.name] for tag, _ in self.tagged for trial in plan.of("attack", tag)])
            figures.append(Figure("union", _sum(shares), count, None, {"use": "union", "of": list(last)}, "union"))
            last["union"] = shares
        table = verdicts.per_class([columns[CLEAN].right, *last.values()], plan.classes)
        limited = () if self.images is None else (classes_in_order(verdicts, plan),)
        raised = (*seen, *signs(verdicts, plan), *limited)
        return Report(tuple(figures), tuple(curves), tuple(budgets), (CLEAN, *last), table, raised)

    @property
    def _checked(self) -> int:
        """Images that the flags' own attacks are made on."""
        return max(self.checks, 0 if self.sees is None else images_for(self.sees))

    @property
    def _kind(self) -> str:
        """What attacks, in a word."""
        return ", ".join(attack.label for attack in self.attacks) or self.attack

    def _name(self, plan: Plan) -> str:
        """What the whole row of attacks is called."""
        if self.attacks:
            return "worst"
        return "autoattack-rand" if plan.draws > 1 else self.attack

    def _pgd(self, threat: Threat, eps: float, size: float | None, restarts: int, stochastic: bool) -> Attack:
        ball = replace(threat, eps=eps)  # type: ignore[type-var]
        step = 2.5 * eps / self.steps if size is None else size
        one = PGD(ball, self.steps, step, eot=DRAWS if stochastic else 1)
        return one if restarts == 1 else Restarts(one, restarts, draws=PASSES if stochastic else 1)


def _column(tensors: Tensors) -> Column:
    return Column(**{field.name: tensors[field.name] for field in fields(Column) if field.name in tensors})


def _seen(found: Columns) -> tuple[Flag, ...]:
    looks = [found[name]["flags"] for name in found.judged if name.startswith(LOOKED) and found.get(name)]
    if not looks:
        raise ConfigError("there are no sound images to judge: name validation shards (tools.eval: --data)")
    return tuple(Flag(**tree) for tree in json.loads(bytes(looks[0].tolist())))


def _figure(trial: Trial, column: Column, images: int, part: bool = False) -> Figure:
    assert trial.attack is not None
    eps = _eps(trial.attack.reach()[0])
    own = tree_of(trial.attack)
    return Figure(trial.attack.label, _sum(column.right), images, eps, own, trial.threat, part, _cost([column]))


def _cost(row: list[Column]) -> dict[str, float]:
    """Means of the passes of a row of attacks, over the images that any of them attacked."""
    found = {}
    for name in COSTS:
        counts = [spent.long() for column in row if (spent := getattr(column, name)) is not None]
        if counts and (attacked := int((torch.stack(counts).amax(0) >= 0).sum())):
            found[name] = float(sum(spent.clamp(min=0).sum() for spent in counts)) / attacked
    return found


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
