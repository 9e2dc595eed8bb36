"""Herrmann et al. 2022 in miniature: pyramids prepare for structured noise. [docs/methods/pyramid-at.md]

S = [4, 2, 1], M = [4, 2, 1], eps 12/255, 5 steps of 2/255 towards random classes. Noise N(0, 0.25^2), constant on
blocks of s x s pixels. Measured, seeds 0 and 1, clean; noise s = 1, 2, 4; under the targeted pyramid attack:
    plain    .988 .988;  .896 .918, .844 .828, .842 .870;  .272 .318
    pixels   .988 .990;  .918 .934, .884 .868, .868 .870;  .366 .394
    pyramid  .982 .990;  .918 .916, .932 .942, .976 .968;  .876 .878
The card: .989; .923, .870, .862; .42 for pixels and .981; .930, .942, .962; .88 for the pyramid. The paper's gain of
clean accuracy is not visible on digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from digits_training import digits, trained, verdicts

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Attack, Raising
from robust_train.objectives.pyramid import PyramidTraining
from robust_train.threats.pyramid import Pyramid

EPS, SIZE = 12 / 255, 2 / 255
LEVELS, MULTIPLIERS = (4, 2, 1), (4.0, 2.0, 1.0)


def training(levels: tuple[int, ...], multipliers: tuple[float, ...]) -> PyramidTraining:
    attack = PGD(Pyramid(EPS, levels, multipliers), 5, SIZE, "zero", targets="random", drops="frozen", norm="group")
    return PyramidTraining(attack)


def under_noise(network: Network, block: int) -> float:
    """Accuracy on test images with noise that is constant on blocks."""
    _, _, images, labels = digits()
    coarse = 0.25 * torch.randn(len(images), 1, 8 // block, 8 // block, generator=torch.Generator().manual_seed(7))
    noisy = (images + coarse.repeat_interleave(block, 2).repeat_interleave(block, 3)).clamp(0, 1)
    with torch.no_grad():
        return float(correct(network(noisy), labels).mean())


@dataclass(frozen=True)
class Towards(Attack):
    """An attack that lowers the loss of the targets it is given."""

    attack: Attack

    @property
    def threat(self):
        return self.attack.threat

    def __call__(self, network, images, targets, key, goal=None):
        return self.attack(
            network, images, targets, key, Raising(lambda logits, wanted: -cross_entropy(logits, wanted))
        )

    def cost(self) -> float:
        return self.attack.cost()


@pytest.mark.slow
def test_pyramids_prepare_for_structured_noise_where_pixels_do_not():
    pixels, pyramid = trained(training((1,), (1.0,))), trained(training(LEVELS, MULTIPLIERS))
    for block in (2, 4):
        assert under_noise(pyramid, block) >= under_noise(pixels, block) + 0.04
    _, _, images, labels = digits()
    clean = [float(verdicts(network).mean()) for network in (pixels, pyramid)]
    assert clean[1] >= clean[0] - 0.015
    attack = Towards(PGD(Pyramid(EPS, LEVELS, MULTIPLIERS), 5, SIZE, "zero"))
    held = [float(verdicts(network, attack, (labels + 1) % 10).mean()) for network in (pixels, pyramid)]
    assert held[1] >= held[0] + 0.3
    pixel = Towards(PGD(Pyramid(EPS, (1,), (1.0,)), 5, SIZE, "zero"))
    far, near = (
        (found(pyramid, images, (labels + 1) % 10, Key(1)) - images).flatten(1).norm(dim=1).mean()
        for found in (attack, pixel)
    )
    assert far >= 4 * near
