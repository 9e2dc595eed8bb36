"""An objective that goes wrong at one update, on some rows of the global batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from robust_train.keyed import Key
from robust_train.nouns import Batch, Loss, Objective, State


@dataclass(frozen=True)
class Faulty(Objective):
    """Another objective, whose loss is multiplied by `times` at update `update` in the part that holds `position`."""

    inside: Objective
    update: int
    position: int = 12
    times: float = float("nan")
    gradient: bool = False  # whether the loss itself stays as it is, and only its gradient is multiplied

    use = "faulty"

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        loss = self.inside(network, batch, key, state)
        if key.seed != Key(0).at(self.update).seed or not (batch.position == self.position).any():
            return loss
        wrong = self.times * loss.total
        total = loss.total + (wrong - wrong.detach()) if self.gradient else wrong
        return replace(loss, total=total)

    def cost(self) -> float:
        return self.inside.cost()
