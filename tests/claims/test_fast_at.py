"""One-step training in miniature: N-FGSM holds at least as well as FGSM-RS. [docs/methods/fast-at.md]

Measured, seeds 0 and 1, clean / PGD-50 at 0.15: PGD-10 training .984 .984 / .676 .678; N-FGSM .960 .968 / .660 .668;
FGSM-RS .984 .986 / .638 .632; FGSM .986 .988 / .632 .646. Catastrophic overfitting does not show on digits: FGSM from
the image itself does as well as FGSM-RS.
"""

from __future__ import annotations

import pytest
from digits_training import accuracy, trained

from robust_train.attacks.fgsm import FGSMRS, NFGSM
from robust_train.attacks.pgd import PGD
from robust_train.objectives.madry import Madry
from robust_train.threats.linf import Linf

EPS = 0.15


@pytest.mark.slow
def test_one_step_of_an_attack_trains_nearly_as_well_as_ten_and_wide_noise_helps():
    pgd50 = PGD(Linf(EPS), 50, 2.5 * EPS / 50)
    ten, wide, projected = (
        Madry(attack) for attack in (PGD(Linf(EPS), 10, EPS / 4), NFGSM(Linf(EPS)), FGSMRS(Linf(EPS)))
    )
    assert wide.cost() == projected.cost() == 5
    assert ten.cost() == 23
    slow, noisy, restarted = (accuracy(trained(objective), pgd50) for objective in (ten, wide, projected))
    assert noisy >= restarted
    assert min(noisy, restarted) >= slow - 0.1
    assert min(noisy, restarted) >= 0.55
