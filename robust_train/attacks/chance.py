"""Networks that answer by chance: what is decided of a point is decided by a mean over passes, never by one draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor

from robust_train.attacks.attacked import masks
from robust_train.keyed import Key
from robust_train.keyed.mode import Changes, Norms
from robust_train.losses import correct, full
from robust_train.models.foreign import moded
from robust_train.models.network import Moded

PASSES = 100  # of a verdict: a point that none of them is right at is right in 3 % of all passes at most (p = 0.05)


class Chancy(Moded):
    """A network that was found to answer by chance though it does not say so, for attacks to judge accordingly."""

    by_chance = True

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.given = moded(network)
        self.training = self.given.training

    def forward(self, points: Tensor) -> Tensor:
        """Logits [B, C], of another draw each time."""
        return self.given(points)

    def mode(self, training: bool | None = None, **changes: Unpack[Changes]) -> AbstractContextManager[None]:
        """That of the network."""
        return self.given.mode(training, **changes)

    @contextmanager
    def attacked(self, norm: Norms, key: Key | None = None) -> Iterator[None]:
        """As the network is."""
        with self.given.attacked(norm, key):
            yield


def passes(network: Any) -> int:
    """Forwards of a verdict: PASSES where the network draws noise that is neither off nor fixed; else 1."""
    return PASSES if isinstance(network, Moded) and network.by_chance else 1


def answer(network: Any, points: Tensor, draws: int = 1) -> Tensor:
    """Mean logits [b, C] of so many passes, with whatever graph there is: what a search that reads logits decides by.

    One pass of a network with noise leads it by luck. All the graphs are held at once. Costs `draws` forwards.
    """
    first = full(network(points))
    if draws == 1:
        return first
    return torch.stack([first, *(full(network(points)) for _ in range(draws - 1))]).mean(0)


def refuse_draws(attack: Any) -> None:
    """ValueError for fewer draws than one."""
    if attack.draws < 1:
        raise ValueError(f"draws={attack.draws} must be at least 1: it counts the passes averaged a look")


def judged(network: Any, points: Tensor, targets: Tensor, key: Key, count: int) -> tuple[Tensor, Tensor]:
    """(share of the passes that were right [b], the passes' mean logits [b, C]), without dropout and without a graph.

    Pass n has the noise of key.at(n): points judged under one key meet the same draws, so that the worse of two is told
    from the luckier. Of one pass the share is 0 or 1.
    """
    shares, answers = [], []
    with torch.no_grad():
        for number in range(count):
            with masks(network, "off", key, number):
                logits = network(points)
            shares.append(correct(logits, targets))
            answers.append(full(logits) if count > 1 else logits)
    if count == 1:
        return shares[0], answers[0]
    return torch.stack(shares).mean(0), torch.stack(answers).mean(0)
