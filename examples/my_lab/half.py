"""A training method, whole: half of the loss on clean images, half on attacked ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Attack, Batch, Loss, Objective, State
from robust_train.read.registry import objectives


@objectives.register("half")
@dataclass(frozen=True)
class Half(Objective):
    """Half of the loss on clean images, half on attacked ones.

        L = (H(f(x), y) + H(f(x'), y)) / 2

    Costs the attack and two forward and backward passes: 2K + 6.
    """

    attack: Attack  # what makes x'

    examples = "- {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}}"

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"))
        with network.drops(key.of("drops")):  # the same dropout masks in both passes
            logits = network(batch.images)
            clean = cross_entropy(logits, batch.targets).mean()
            robust = cross_entropy(network(adversarial), batch.targets).mean()
        told = {"loss/clean": clean, "loss/robust": robust, "accuracy/clean": correct(logits, batch.targets).mean()}
        return Loss((clean + robust) / 2, metrics=told)

    def cost(self) -> float:
        """Forward passes of an update."""
        return self.attack.cost() + 6
