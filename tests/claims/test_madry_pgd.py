"""Madry et al. 2018 in miniature: training on the worst case holds under attack. [docs/methods/madry-pgd.md]

Measured, seeds 0 and 1, clean / PGD-50 at 0.15 / at 0.10: plain .988 / .086, .100 / .490, .486; PGD-10 training .984 /
.676, .678 / .854, .870. The card: .987 / .10 / .48 and .980 / .68 / .85.
"""

from __future__ import annotations

import pytest
from digits_training import accuracy, trained

from robust_train.attacks.pgd import PGD
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.threats.linf import Linf

EPS = 0.15


@pytest.mark.slow
def test_adversarial_training_gains_half_of_the_images_under_attack_for_two_points_of_clean_accuracy():
    pgd50 = PGD(Linf(EPS), 50, 2.5 * EPS / 50)
    plain, robust = trained(Plain()), trained(Madry(PGD(Linf(EPS), 10, EPS / 4)))
    assert accuracy(plain) >= 0.97
    assert accuracy(robust) >= accuracy(plain) - 0.02
    assert accuracy(robust, pgd50) >= accuracy(plain, pgd50) + 0.5
