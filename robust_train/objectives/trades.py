"""Accuracy and smoothness as two terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, kl
from robust_train.nouns import (
    Attack,
    Batch,
    Dataset,
    Divergence,
    Goal,
    Loss,
    Objective,
    Part,
    Raising,
    Score,
    State,
    number,
)
from robust_train.objectives.divergence import KL
from robust_train.read.registry import Number, objectives


class Apart(Goal):
    """KL(p || softmax f(x')), with p = softmax f(x) as the attack's BatchNorm and first masks have it. Costs 1."""

    def of(self, network: Any, images: Tensor, targets: Tensor, key: Key) -> Score:
        with torch.no_grad():
            clean = network(images)
        return Raising(kl, clean).of(network, images, targets, key)


@objectives.register("trades")
@dataclass(frozen=True)
class Trades(Objective):
    """Cross-entropy on clean images, and what an attack can change of the network's answer.

        L = H(f(x), y) + beta KL(p || q),    p = softmax f(x), q = softmax f(x'),    x' = argmax KL(p || q)

    Gradients flow into both p and q; in the attack into q alone, from p as it is there (under the attack's BatchNorm
    and masks). At x' = x the attack's gradient is exactly 0: it must start elsewhere, as with PGD's start "noise".
    Zhang et al. 2019 (arXiv 1901.08573, equation 5). Both forwards have the same drop masks. Costs the attack, one
    forward of p for it, and two forwards and backwards: 2K + 7 for K steps, 6 for none.
    """

    attack: Attack  # what raises the divergence: for the paper PGD with start noise
    beta: Number  # weight of the second term: 6 on CIFAR-10, 1 on MNIST
    smoothing: float = 0.0  # label smoothing of the first term, in [0, 1)
    term: Divergence = field(
        default_factory=KL
    )  # the second term, KL or what stands in its place; the attack raises KL

    tells = (("loss/TERM", "nats", "the term beside the cross-entropy, before beta, by its name (kl, dkl, ...)"),)
    examples = """
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, start: noise}, beta: 6.0}
    - {attack: {use: restarts, attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, restarts:
      2}, beta: 1.0, smoothing: 0.1}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, beta: 1.0,
      term: {use: ikl, alpha: 4.0, beta: 20.0, epoch: 2}}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, beta: 1.0,
      term: {use: gkl, alpha: 4.0, beta: 20.0, gamma: 0.2, epoch: 2, normaliser: group, group: 4}}
    """

    def __post_init__(self) -> None:
        if isinstance(self.beta, (int, float)) and not self.beta >= 0:
            raise ValueError(f"beta={self.beta:g} must not be negative: it weighs the robust term")
        if getattr(self.attack, "start", None) == "zero":
            raise ValueError("attack.start: zero is where the divergence has no gradient; use noise or random")
        if getattr(self.attack, "targets", None) == "random":
            raise ValueError("attack.targets: random lowers what it raises towards a class, and a divergence has none")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"), Apart())

        with network.drops(key.of("drops")):
            clean = network(batch.images)
            attacked = network(adversarial)

        natural = cross_entropy(clean, batch.targets, self.smoothing).mean()
        robust = self.term(clean, attacked, batch.targets, state).mean()
        return Loss(
            natural + number(self.beta) * robust,
            metrics={
                "loss/clean": natural,
                f"loss/{self.term.use}": robust,
                "accuracy/clean": correct(clean, batch.targets).mean(),
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
            sums=self.term.sums(clean, batch.targets),
        )

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return self.term.parts(data)

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        self.term.settle(state, sums, update)

    def groups(self) -> int:
        return self.term.groups()

    def cost(self) -> float:
        return self.attack.cost() + self.attack.goals() + 6
