"""Adversarial training as a saddle point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Attack, Batch, Loss, Objective, State
from robust_train.read.registry import objectives


@objectives.register("madry")
@dataclass(frozen=True)
class Madry(Objective):
    """Cross-entropy on attacked images alone: min over weights of the worst case in the threat model.

        L = H(f(x'), y),    x' = attack(x)

    Madry et al. 2018 (arXiv 1706.06083, equation 2.1). Costs the attack, one forward and one backward: 2K+3.
    """

    attack: Attack  # what makes the training images
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1); the attack's loss has none

    examples = """
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, norm: group, drops: frozen}}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, keep: best, eot: 2, drops: redrawn}}
    - {attack: {use: n-fgsm, threat: {use: linf, eps: 0.1}}, smoothing: 0.1}
    """

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"))

        with network.drops(key.of("drops")):
            logits = network(adversarial)

        loss = cross_entropy(logits, batch.targets, self.smoothing).mean()
        return Loss(loss, metrics={"loss/robust": loss, "accuracy/attacked": correct(logits, batch.targets).mean()})

    def cost(self) -> float:
        return self.attack.cost() + 3
