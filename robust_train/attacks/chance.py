"""Networks that answer by chance: what is decided of a point is decided by a mean over passes, never by one draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import masks
from robust_train.keyed import Key
from robust_train.losses import correct, full

PASSES = 100  # of a verdict: a point that none of them is right at is right in 3 % of all passes at most (p = 0.05)


class Chancy:
    """A network that was found to answer by chance though it does not say so, for attacks to judge accordingly."""

    noisy = ("found random",)

    def __init__(self, network: Any) -> None:
        self.plain = network

    def __call__(self, points: Tensor) -> Tensor:
        """Logits [B, C], of another draw each time."""
        return self.plain(points)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


def passes(network: Any) -> int:
    """Forwards of a verdict: PASSES where the network draws noise that is neither off nor fixed; else 1."""
    network = network if isinstance(network, Chancy) else getattr(network, "plain", network)
    each = getattr(network, "each", [network])  # an ensemble's members
    return PASSES if any(getattr(one, "noisy", ()) and _mode(one) == "drawn" for one in each) else 1


def _mode(network: Any) -> str:
    """Of the noise of one network."""
    return getattr(getattr(network, "now", None), "noisy", "drawn")


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
