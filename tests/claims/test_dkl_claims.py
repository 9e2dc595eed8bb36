"""KL taken apart in miniature: IKL beside TRADES. [docs/methods/dkl.md]

The figures are in the page: `python tests/claims/test_dkl_claims.py` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from digits_training import accuracy, digits, table, trained

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.nouns import Objective
from robust_train.objectives.divergence import DKL, GKL, IKL, weighted_squares
from robust_train.objectives.trades import Trades
from robust_train.threats.linf import Linf

BALL = Linf(0.15)
PGD50 = PGD(BALL, 50, 2.5 * BALL.eps / 50)
NOISY = PGD(BALL, 10, BALL.eps / 4, "noise")
EPOCH = 10  # updates

ARMS: Mapping[str, Objective] = {
    "trades": Trades(NOISY, 1.0),
    "dkl": Trades(NOISY, 1.0, term=DKL()),
    "ikl": Trades(NOISY, 1.0, term=IKL(1.0, 5.0, epoch=EPOCH)),
    "gkl 0.5": Trades(NOISY, 1.0, term=GKL(1.0, 5.0, epoch=EPOCH, gamma=0.5)),
}


def measured(objective: Objective, seed: int, epochs: int = 60) -> dict[str, float]:
    """Accuracies, and the mean distance of clean and attacked logits: half the variance of d under equal weights."""
    network, (_, _, images, labels) = trained(objective, seed, epochs), digits()
    attacked = PGD50(network, images, labels, Key(1))
    with torch.no_grad():
        clean, moved = network(images), network(attacked)
    apart = weighted_squares(clean, moved, torch.full_like(clean, 0.1)).mean()
    return {"clean": accuracy(network), "pgd50": accuracy(network, PGD50), "apart": float(apart)}


@pytest.mark.slow
def test_ikl_holds_as_trades_does_with_answers_nearer_to_each_other() -> None:
    trades, ikl = (measured(ARMS[name], 0, 40) for name in ("trades", "ikl"))
    assert ikl["pgd50"] >= trades["pgd50"] - 0.04  # 500 images: one standard error is 0.021
    assert ikl["apart"] < 0.8 * trades["apart"]


if __name__ == "__main__":
    table({name: (lambda seed, one=one: measured(one, seed)) for name, one in ARMS.items()})
