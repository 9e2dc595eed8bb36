"""MART, perturbed weights, free training and aligned gradients in miniature. [docs/methods/mart-awp.md]

The figures are in the page: `python tests/claims/test_mart_awp_claims.py` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from digits_training import BATCH, accuracy, digits, table, trained

from robust_train.attacks.fgsm import FGSM
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Objective
from robust_train.objectives.awp import AWP
from robust_train.objectives.free import Free
from robust_train.objectives.grad_align import GradAlign, alignment
from robust_train.objectives.madry import Madry
from robust_train.objectives.mart import Mart
from robust_train.objectives.plain import Plain
from robust_train.threats.linf import Linf
from robust_train.threats.weights import Weights, moved

BALL = Linf(0.15)
PGD50 = PGD(BALL, 50, 2.5 * BALL.eps / 50)
TEN, NOISY = PGD(BALL, 10, BALL.eps / 4), PGD(BALL, 10, BALL.eps / 4, "noise")


def perturbed(network: Network, gamma: float) -> dict[str, float]:
    """Accuracy and loss on clean test images after one ascent step of the weights, gamma of each layer's norm."""
    _, _, images, labels = digits()
    v, weights = Weights(gamma).direction(network, images, labels), dict(network.named_parameters())
    with torch.no_grad():
        logits = moved(network, {name: weights[name] + v[name] for name in v})(images)
        loss = cross_entropy(logits, labels).mean()
    return {f"weights {gamma:g}": float(correct(logits, labels).mean()), f"loss {gamma:g}": float(loss)}


def measured(objective: Objective, seed: int, epochs: int = 60, times: int = 1) -> dict[str, float]:
    network = trained(objective, seed, epochs, times=times)
    figures = {"clean": accuracy(network), "pgd50": accuracy(network, PGD50)}
    return figures | perturbed(network, 0.05) | perturbed(network, 0.1)


ARMS: Mapping[str, tuple[Objective, int, int]] = {  # objective, epochs, updates a batch
    "plain": (Plain(), 60, 1),
    "pgd": (Madry(TEN), 60, 1),
    "mart": (Mart(NOISY, 5.0), 60, 1),
    "fgsm": (Madry(FGSM(BALL)), 60, 1),
    "grad-align": (GradAlign(Madry(FGSM(BALL)), 0.2, BALL), 60, 1),
    "free-4": (Free(BALL, BATCH), 120, 4),
    "pgd, 120 epochs": (Madry(TEN), 120, 1),
    "awp, 120 epochs": (AWP(Madry(TEN), 0.01, BATCH), 120, 1),
}


@pytest.mark.slow
def test_mart_holds_as_pgd_training_does() -> None:
    madry, mart = (measured(objective, 0, 40) for objective in (Madry(TEN), Mart(NOISY, 5.0)))
    assert mart["pgd50"] >= madry["pgd50"] - 0.04  # 500 images: one standard error is 0.021
    assert mart["clean"] >= 0.93


@pytest.mark.slow
def test_perturbed_weights_in_training_flatten_the_loss() -> None:
    """The gain in robustness to weights is large; to images none is seen at this size."""
    plain, awp = (measured(one, 0, 60) for one in (Madry(TEN), AWP(Madry(TEN), 0.01, BATCH)))
    assert awp["weights 0.1"] >= plain["weights 0.1"] + 0.05
    assert awp["loss 0.05"] < 0.7 * plain["loss 0.05"]
    assert awp["pgd50"] >= plain["pgd50"] - 0.04


@pytest.mark.slow
def test_free_training_holds_better_than_plain_training_at_its_price() -> None:
    """Seed 0: .402 beside .10. PGD training's .67, at eight times the price, is not reached on digits."""
    free = Free(BALL, BATCH)
    assert free.cost() == Plain().cost()
    assert measured(free, 0, 120, 4)["pgd50"] >= measured(Plain(), 0, 120)["pgd50"] + 0.2


@pytest.mark.slow
def test_aligned_gradients_point_one_way_within_the_ball() -> None:
    _, _, images, labels = digits()
    fgsm = Madry(FGSM(BALL))
    cosines = []
    for objective in (
        fgsm,
        GradAlign(fgsm, 4.0, BALL),
    ):  # one step does not collapse on digits: a large weight shows it
        network = trained(objective, epochs=30)
        points = images, BALL.apply(images, BALL.start(images, Key(5)))
        slopes = [torch.autograd.grad(cross_entropy(network(x.requires_grad_()), labels).sum(), x)[0] for x in points]
        cosines.append(float(alignment(*slopes).mean()))
    assert 1 - cosines[1] <= 0.65 * (1 - cosines[0])


if __name__ == "__main__":
    table({name: (lambda seed, said=said: measured(said[0], seed, *said[1:])) for name, said in ARMS.items()})
