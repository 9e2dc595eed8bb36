"""Any training loss, at weights that an adversary has moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.nouns import Attack, Batch, Dataset, Goal, Loss, Objective, Part, State, Threat, number
from robust_train.read.registry import Number, objectives
from robust_train.threats.weights import Weights, moved, refuse_cut


@objectives.register("awp")
@dataclass(frozen=True)
class AWP(Objective):
    """Adversarial weight perturbation around any objective: its gradient is taken where its loss is larger.

        x' = the objective's attacks at w
        v_l = gamma ||w_l|| / ||g_l|| g_l,    g = dL/dw at (w, x'),    l: every weight tensor of more than one dimension
        w <- w - step(dL/dw at (w + v, x'))

    Wu, Xia and Wang 2020 (arXiv 2004.05884, algorithm 1). v is taken for each group of consecutive images alone: no
    collective, and no result depends on ranks or micro-batches; one group of the whole batch is the paper's. Biases and
    norms stay. The network itself is never moved: forwards go through copies that share all else, so that nothing is to
    be restored, clipping sees gradients at w + v, and decay and averages see w. The direction records no statistics.
    Needs whole tensors: ConfigError under ZeRO 3, which shards them. gamma 0: the objective itself.
    Costs the objective, and its forwards and backwards without its attacks once more: 2K + 6 around madry.
    """

    objective: Objective  # whose loss is raised and then lowered; its attacks are made once
    gamma: Number  # length of the step as a share of each tensor's norm: 0.01 for PGD training, 0.005 for TRADES
    group: int = 128  # consecutive images that share a direction (the paper's batch); a micro-batch holds whole groups

    examples = """
    - {gamma: 0.01, group: 4, objective: {use: madry,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}}
    - {gamma: 0.05, group: 4, objective: {use: trades, beta: 6.0,
      attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}}
    """

    def __post_init__(self) -> None:
        Weights(self.gamma, self.group)  # refuses what is no share, and no group
        if self.group % self.objective.groups():
            raise ValueError(
                f"group={self.group} is no multiple of the {self.objective.groups()} images that "
                f"{self.objective.use} takes together"
            )
        try:
            self._held(None)
        except ValueError as error:
            raise ValueError(
                f"objective: {self.objective.use} looks into its attacks, which are to be made once and kept here "
                f"({error}). Perturb its weights by a field of its own where it has one, or take another objective."
            ) from error

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        plain = network
        refuse_cut(plain)
        if number(self.gamma) == 0:
            return self.objective(network, batch, key, state)
        key = key.naming(batch.images)
        parts = [slice(first, first + self.group) for first in range(0, len(batch), self.group)]
        return _together([self._of(plain, batch[rows], key[rows], state) for rows in parts])

    def _of(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        """The loss of a group that shares a direction."""
        tape = Tape(network)
        objective = self._held(tape)
        names = [name for name, p in network.named_parameters() if p.requires_grad]
        here = dict(network.named_parameters())

        weights = {name: here[name].detach().requires_grad_() for name in names}
        beside: Any = moved(network, weights)
        with torch.enable_grad(), beside.mode(record=False):
            raised = objective(beside, batch, key, state).total
        if raised is None:
            raise ValueError(f"objective: {self.objective.use} gave no loss of the network: there is nothing to raise")
        gradients = torch.autograd.grad(raised, list(weights.values()), allow_unused=True)
        v = Weights(self.gamma).along(dict(zip(names, gradients, strict=True)), here)

        tape.rewind()
        return objective(moved(network, {name: here[name] + v[name] for name in v}), batch, key, state)

    def _held(self, tape: Tape | None) -> Objective:
        """The objective, its attacks made at the network of the tape and kept there."""
        held: Objective = _with_attacks(self.objective, lambda attack: Kept(attack, attack.reach()[0], tape))
        return held

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return self.objective.parts(network, data)

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        self.objective.settle(network, state, sums, update, updates)

    def cost(self) -> float:
        return self.objective.cost() + self._held(None).cost()

    def groups(self) -> int:
        return self.group


class Tape:
    """What attacks gave, in the order that they were asked: played again after `rewind`."""

    def __init__(self, network: Any) -> None:
        self.network = network  # where they are made
        self.found: list[Tensor] = []
        self.turn = 0

    def rewind(self) -> None:
        """From the beginning."""
        self.turn = 0

    def next(self, make: Callable[[Any], Tensor]) -> Tensor:
        """The next one: what is there, or what is made now."""
        if self.turn == len(self.found):
            self.found.append(make(self.network))
        self.turn += 1
        return self.found[self.turn - 1]


@dataclass(frozen=True)
class Kept(Attack):
    """An attack made at one network, whichever it is asked for, and once: then its points are there."""

    attack: Attack
    threat: Threat
    tape: Tape | None = field(compare=False)

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        assert self.tape is not None, "an objective that is only asked for its cost makes no attack"
        return self.tape.next(lambda at: self.attack(at, images, targets, key, goal))

    def cost(self) -> float:
        return 0.0

    def reach(self) -> tuple[Threat, ...]:
        return self.attack.reach()


def _with_attacks(value: Any, change: Callable[[Attack], Attack]) -> Any:
    """`value` with the outermost attacks in it, however deep, changed."""
    if isinstance(value, Attack):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        now = {f.name: _with_attacks(getattr(value, f.name), change) for f in fields(value) if f.init}
        changed = {name: new for name, new in now.items() if new is not getattr(value, name)}
        return replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        entries = tuple(_with_attacks(entry, change) for entry in value)
        return value if all(new is old for new, old in zip(entries, value, strict=True)) else entries
    return value


def _together(losses: list[Loss]) -> Loss:
    """Groups of one size as one loss: means are averaged, counts and sums added up."""
    first, n = losses[0], len(losses)
    if n == 1:
        return first

    def mean(values: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([each[name] for each in values]).mean(0) for name in values[0]}

    def total(values: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([each[name] for each in values]).sum(0) for name in values[0]}

    return Loss(
        torch.stack([loss.total for loss in losses if loss.total is not None]).mean(),
        mean([loss.metrics for loss in losses]),
        total([loss.counts for loss in losses]),
        mean([loss.of for loss in losses]),
        total([loss.sums for loss in losses]),
    )
