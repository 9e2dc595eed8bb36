"""Weights by information in miniature, beside their shuffled control. [docs/methods/infoat.md]

The figures are in the page: `python tests/claims/test_infoat_claims.py` measures them. The card finds no effect beyond
noise on digits; what is shown is that information equals its shuffled control, and does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from digits_training import BATCH, accuracy, digits, table, trained, verdicts
from scipy.stats import spearmanr

from robust_train.attacks.pgd import PGD
from robust_train.models.network import Network
from robust_train.nouns import Weighting
from robust_train.objectives.information import Information, information
from robust_train.objectives.mart import Mart
from robust_train.objectives.plain import Plain
from robust_train.objectives.weighting import Confidence, Shuffled, Uniform
from robust_train.threats.linf import Linf

BALL = Linf(0.15)
PGD50 = PGD(BALL, 50, 2.5 * BALL.eps / 50)
NOISY = PGD(BALL, 10, BALL.eps / 4, "noise")
OWN = Information(BATCH)

ARMS: Mapping[str, Weighting] = {
    "uniform": Uniform(),
    "mart": Confidence(),
    "information": OWN,
    "shuffled": Shuffled(OWN, BATCH),
}


def vulnerability(network: Network) -> torch.Tensor:
    """[500]: how many of ten radii fool the network on each test image."""
    radii = [0.01 * k for k in range(1, 11)]
    return sum(1 - verdicts(network, PGD(Linf(eps), 10, eps / 4)) for eps in radii)  # type: ignore[return-value]


def observed(seed: int) -> dict[str, float]:
    """Of a plain network: information of all test images' features, and its rank correlation with vulnerability."""
    network, (_, _, images, _) = trained(Plain(), seed), digits()
    with torch.no_grad():
        found = information(network(images, taps=("3",))[1]["3"])
    rho = spearmanr(found.numpy(), vulnerability(network).numpy()).statistic
    return {"mean": float(found.mean()), "sd": float(found.std()), "spearman": float(rho)}


def measured(weighting: Weighting, seed: int, epochs: int = 60) -> dict[str, float]:
    network = trained(Mart(NOISY, 5.0, weighting), seed, epochs)
    return {"clean": accuracy(network), "pgd50": accuracy(network, PGD50)}


@pytest.mark.slow
def test_information_equals_its_shuffled_control_and_does_no_harm() -> None:
    found = {name: measured(ARMS[name], 0, 30) for name in ("uniform", "information", "shuffled")}
    for name in ("clean", "pgd50"):
        values = [each[name] for each in found.values()]
        assert max(values) - min(values) <= 0.045  # two standard errors of a figure on 500 images


if __name__ == "__main__":
    arms = {name: (lambda seed, one=one: measured(one, seed)) for name, one in ARMS.items()}
    table({"observation": observed, **arms})
