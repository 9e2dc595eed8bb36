"""Flags on trained networks: an honest one raises none; a quantiser hides gradients, and the identity's finds them.

The rows are those of Croce and Hein's own checks on such networks: 1 bit and 3 bits, with and without the identity's
gradient. Measured at eps 0.15 after 60 epochs, clean / PGD-50: no quantiser .985 / .06; 1 bit .93 / .85, with the
identity's gradient .58; 3 bits .98 / .96, with it .09. A short Square after PGD: 26 and 56 points more without it, one
at most with.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_train.attacks.pgd import PGD
from robust_train.evaluate.report import Report
from robust_train.evaluate.robustness import Robustness
from robust_train.keyed import Key
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.threats.linf import Linf
from tests.claims.digits_training import digits, trained
from tests.evaluate.zoo import Labelled, quantised

EPS = 0.15


class Behind(nn.Module):
    """A network behind something that is done to its images."""

    classes = 10

    def __init__(self, front, network: nn.Module) -> None:
        super().__init__()
        self.front, self.network = front, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.front(images))


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return trained(Plain(), epochs=30)


def report(network: nn.Module, attack: str = "pgd", eps: float = EPS) -> Report:
    _, _, images, labels = digits()
    return Robustness((Linf(eps),), attack, images=100)(network, Labelled(images, labels, 10), Key(0))


def raised(report: Report) -> set[str]:
    return {flag.name.removeprefix("linf: ") for flag in report.raised}


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.05, EPS])
def test_a_plainly_trained_network_raises_none(plain, eps):
    assert raised(report(plain, eps=eps)) == set()


@pytest.mark.slow
def test_an_adversarially_trained_network_raises_none_under_the_targeted_attack():
    robust = trained(Madry(PGD(Linf(EPS), 10, EPS / 4)), epochs=15)
    judged = report(robust, "apgd-t")
    assert 0.4 < judged.figures[1].accuracy < judged.figures[0].accuracy - 0.2
    assert raised(judged) == set()


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "gap"), [(2, 0.15), (8, 0.5)])
def test_a_quantiser_hides_gradients_and_the_identitys_gradient_closes_the_gap(plain, levels, gap):
    masked, honest = (report(Behind(quantised(levels, bpda), plain)) for bpda in (False, True))
    assert raised(masked) >= {"zero gradients", "square beats gradients", "unbounded attack fails"}
    assert not raised(honest) & {"zero gradients", "unbounded attack fails"}
    more, few = (
        next(f.value for f in one.flags if f.name == "linf: square beats gradients") for one in (masked, honest)
    )
    assert more > gap
    assert few <= 0.04  # the identity is no exact gradient of one bit
    assert masked.figures[0].right == honest.figures[0].right
    assert masked.figures[1].accuracy > honest.figures[1].accuracy + gap


@pytest.mark.slow
def test_noise_on_the_images_is_randomness_and_averaged_gradients_see_through_it(plain):
    noisy = Behind(lambda images: images + 0.2 * torch.randn_like(images), plain)
    _, _, images, labels = digits()
    evaluation = Robustness((Linf(0.1),), steps=10, restarts=1, images=40, curve=2, checks=20)
    judged = evaluation(noisy, Labelled(images, labels, 10), Key(0))
    assert raised(judged) == {"randomised"}
    assert judged.figures[1].accuracy < judged.figures[0].accuracy - 0.2
