"""One-step attacks of the fast family. [docs/methods/trades-mart-awp.md, docs/methods/fast-at.md]"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from robust_train.attacks.fgsm import FGSM, FGSMRS, NFGSM
from robust_train.keyed import Key
from robust_train.threats.linf import Linf


@pytest.fixture
def starts(monkeypatch):
    """Sets the random start of L-infinity attacks to a given offset."""

    def to(offset: float) -> None:
        monkeypatch.setattr(Linf, "start", lambda self, images, key: torch.full_like(images, offset))

    return to


def rising(images: torch.Tensor) -> torch.Tensor:
    """Two logits whose cross-entropy for class 0 rises with each pixel."""
    return torch.stack([-images.flatten(1).sum(1), images.flatten(1).sum(1)], 1)


def moved(attack, image: float = 0.5) -> float:
    images = torch.full((1, 1), image, dtype=torch.float64)
    return float(attack(rising, images, torch.zeros(1).long(), Key(0)) - images)


def test_fgsm_moves_each_pixel_by_the_radius():
    assert_close(moved(FGSM(Linf(0.1))), 0.1)
    assert_close(moved(FGSM(Linf(0.1)), 0.95), 0.05)


@pytest.mark.parametrize(("start", "end"), [(0.08, 0.1), (-0.1, 0.025)])
def test_fgsm_rs_steps_a_quarter_more_than_the_radius_and_projects(starts, start, end):
    """x = 0.5, eps = 0.1, step 0.125."""
    starts(start)
    assert_close(moved(FGSMRS(Linf(0.1))), end)


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.3), (-0.2, -0.1)])
def test_n_fgsm_does_not_project(starts, start, end):
    """Noise of 2 eps and a step of eps reach 3 eps."""
    starts(start)
    assert_close(moved(NFGSM(Linf(0.1))), end)


def test_n_fgsm_starts_anywhere_within_k_radii():
    """Its points, less the step, are U(-k eps, k eps)."""
    images = torch.full((4000, 1), 0.5, dtype=torch.float64)
    attack = NFGSM(Linf(0.05), noise=2.0)
    start = attack(rising, images, torch.zeros(4000).long(), Key(0)) - images - 0.05
    level = (start[:, 0] / 0.1 / 2 + 0.5).sort().values
    assert (level - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.95 / 4000**0.5  # Kolmogorov, 0.1 %
    assert attack.reach() == (Linf(0.05 * 3),)


def test_noise_beyond_the_range_of_pixels_is_refused():
    with pytest.raises(ValueError, match="noise of at most 1"):
        NFGSM(Linf(0.5), noise=2.0)
    with pytest.raises(ValueError, match="noise=-1"):
        NFGSM(Linf(0.1), noise=-1.0)
