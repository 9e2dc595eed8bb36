"""Attacks made of attacks: the worst of several, image by image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import Norm, attacked
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Attack, Goal, Raising, Threat
from robust_train.read.registry import attacks

By = Literal["fooled", "loss"]


@attacks.register("restarts")
@dataclass(frozen=True)
class Restarts(Attack):
    """The worst of independent starts of one attack, image by image: one that fools first, then the larger loss.

    Start i has the key `restart`, i. Every image is attacked in every start (nothing waits for the device). Where the
    network draws noise, the worst is what fools in most of `draws` passes. Costs n times the attack, and `draws`
    forwards a start where there are several.
    """

    attack: Attack  # what is started again and again
    restarts: int  # independent starts
    norm: Norm = "running"  # BatchNorm where the starts are judged
    draws: int = 1  # passes that a start is judged by, over the network's own randomness

    examples = """
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 1, step_size: 0.1}, restarts: 3}
    - {attack: {use: pgd, threat: {use: pyramid, eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}, steps: 1,
      step_size: 0.02}, restarts: 1}
    """

    def __post_init__(self) -> None:
        if self.restarts < 1 or self.draws < 1:
            raise ValueError(f"restarts={self.restarts} and draws={self.draws} must be at least 1: they are counts")

    @property
    def threat(self) -> Threat:  # type: ignore[override]  # that of the attack
        return self.attack.threat

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        starts = (
            self.attack(network, images, targets, key.of("restart").at(start), goal) for start in range(self.restarts)
        )
        if self.restarts == 1:
            return next(starts)
        return worst(network, images, starts, targets, key, goal, self.norm, "fooled", self.draws)

    def reach(self) -> tuple[Threat, ...]:
        """Those of the attack."""
        return self.attack.reach()

    def cost(self) -> float:
        return self.restarts * (self.attack.cost() + self.draws * (self.restarts > 1))

    def goals(self) -> int:
        return self.restarts * self.attack.goals() + (self.restarts > 1)

    @property
    def label(self) -> str:
        """That of the attack: PGD-50 with restarts is still PGD-50 in tables, its restarts stand beside it."""
        return self.attack.label


@attacks.register("worst-of")
@dataclass(frozen=True)
class WorstOf(Attack):
    """The worst of several attacks, image by image: for the union of their threat models.

    Costs the attacks, and `draws` forwards for each where there are several.
    """

    attacks: tuple[Attack, ...]  # each with its threat model
    by: By = "fooled"  # one that fools first, then the larger loss; or the larger loss alone
    norm: Norm = "running"  # BatchNorm where the attacks are judged
    draws: int = 1  # passes that a point is judged by, over the network's own randomness

    examples = """
    - {attacks: [{use: pgd, threat: {use: linf, eps: 0.1}, steps: 1, step_size: 0.1}, {use: fgsm, threat: {use: l2, eps:
      0.5}}]}
    - {attacks: [{use: fgsm, threat: {use: l1, eps: 1.5}}], by: loss}
    """

    def __post_init__(self) -> None:
        if not self.attacks:
            raise ValueError("attacks is empty: name one or more of them")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1: it counts the passes that a point is judged by")

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], each inside one of the threat models, without a graph."""
        found = (
            attack(network, images, targets, key.of("attack").at(number), goal)
            for number, attack in enumerate(self.attacks)
        )
        if len(self.attacks) == 1:
            return next(found)
        return worst(network, images, found, targets, key, goal, self.norm, self.by, self.draws)

    def reach(self) -> tuple[Threat, ...]:
        """Those of its attacks."""
        return tuple(threat for attack in self.attacks for threat in attack.reach())

    def cost(self) -> float:
        return sum(attack.cost() + self.draws * (len(self.attacks) > 1) for attack in self.attacks)

    def goals(self) -> int:
        return sum(attack.goals() for attack in self.attacks) + (len(self.attacks) > 1)

    @property
    def label(self) -> str:
        return "worst"


def worst(
    network: Any,
    images: Tensor,
    candidates: Iterable[Tensor],
    targets: Tensor,
    key: Key,
    goal: Goal | None,
    norm: Norm,
    by: By,
    draws: int = 1,
) -> Tensor:
    """[B, ...] from each image's worst candidate, the earlier where they are alike; without dropout, without a sync."""
    chosen: Tensor | None = None
    key = key.naming(images)
    with attacked(network, norm, key):
        see = Sight(network, images, targets, key, goal or Raising(cross_entropy))
    for candidate in candidates:
        with attacked(network, norm, key), torch.no_grad():
            seen = [see(candidate, key, draw) for draw in range(draws)]
        value = torch.stack([score for score, _ in seen]).mean(0)
        fooled = 1 - torch.stack([correct(logits, targets) for _, logits in seen]).mean(0)
        if chosen is None:
            chosen, most, fallen = candidate, value, fooled
            continue
        better = value > most
        if by == "fooled":
            better = (fooled > fallen) | ((fooled == fallen) & better)
        chosen = torch.where(better.view(-1, *[1] * (candidate.dim() - 1)), candidate, chosen)
        most, fallen = torch.where(better, value, most), torch.where(better, fooled, fallen)
    if chosen is None:
        raise ValueError("there is no candidate to choose from: name one or more attacks")
    return chosen
