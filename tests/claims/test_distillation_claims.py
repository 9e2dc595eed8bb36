"""Hinton et al. 2015 and ARD (Goldblum et al. 2020) in miniature. [docs/methods/v1-ensemble-distillation.md]

Measured, one seed: of 3s that it never saw a student knows 90 % (labels alone: none), all digits 97.6 % (89.2 %); under
PGD-50 at 0.15 a student on attacked images is right on 62.2 %, one on clean images, of the same teacher, on 27.8 %.
"""

from __future__ import annotations

import pytest
import torch
from digits_training import accuracy, digits, trained, verdicts

from robust_train.attacks.pgd import PGD
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.objectives import distill
from robust_train.objectives.distill import Distill
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.threats.linf import Linf

EPS = 0.15


def of(monkeypatch: pytest.MonkeyPatch, *teachers: Network) -> None:
    ensemble = Ensemble(list(teachers)).eval().requires_grad_(False)
    monkeypatch.setattr(distill, "teachers_of", lambda *_: ensemble)


def taught(**fields) -> Distill:
    return Distill(("a",), teacher_precision="fp32", **fields)


@pytest.mark.slow
def test_a_student_knows_a_digit_that_it_has_never_seen(monkeypatch):
    """Of soft answers alone, on images without a 3; labels of the same images teach it nothing of a 3."""
    of(monkeypatch, trained(Plain(), seed=0), trained(Plain(), seed=1))
    student = trained(taught(temperature=4.0, alpha=1.0), seed=2, without=3)
    alone = trained(Plain(), seed=2, without=3)
    _, _, _, labels = digits()
    threes = labels == 3
    known, unknown = (float(verdicts(network)[threes].mean()) for network in (student, alone))
    assert unknown == 0
    assert known > 0.5
    assert accuracy(student) > accuracy(alone) + 0.04


@pytest.mark.slow
def test_a_student_on_attacked_images_is_robust_and_one_on_clean_images_is_not(monkeypatch):
    """ARD: a robust teacher's answers on clean images, learned on attacked ones."""
    attack, judge = PGD(Linf(EPS), 10, EPS / 4), PGD(Linf(EPS), 50, 2.5 * EPS / 50)
    of(monkeypatch, trained(Madry(attack), epochs=30))
    torch.manual_seed(0)
    robust = trained(taught(temperature=4.0, alpha=0.9, attack=attack), seed=1, epochs=30)
    clean = trained(taught(temperature=4.0, alpha=0.9), seed=1, epochs=30)
    assert accuracy(robust, judge) > accuracy(clean, judge) + 0.2
    assert accuracy(robust) > 0.9
