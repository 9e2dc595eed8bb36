"""Flags see the share that they are asked to see, and say which they see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.signs import images_for
from robust_train.keyed import Key
from robust_train.threats.linf import Linf
from tests.evaluate.zoo import Labelled, Straight

RARE = 400  # one image of so many


class Masking(nn.Module):
    """Two classes by the first pixel alone; on images whose last pixel is light its gradient points the wrong way."""

    classes = 2

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        turned = Straight.apply(flat[:, 0], lambda pixel: pixel.clone(), -1.0)
        score = torch.where(flat[:, -1] > 0.7, turned, flat[:, 0]) - 0.5
        return torch.stack([-score, score], 1)


def images_of(count: int) -> Labelled:
    """Every image but one of RARE is beyond a radius of 0.1; that one is at 0.02, where its gradient leads it away."""
    images = torch.full((count, 1, 2, 2), 0.5)
    images[:, 0, 0, 0] = 0.7
    rare = torch.arange(count) % RARE == RARE - 1
    images[rare, 0, 0, 0], images[rare, 0, 1, 1] = 0.52, 0.9
    return Labelled(images, torch.ones(count, dtype=torch.long), 2)


def test_a_network_that_masks_for_one_image_of_400_is_seen_on_request() -> None:
    """On 100 images there is none of it; on 1,200 three, more than luck. The figure itself finds nothing."""
    usual = Robustness((Linf(0.1),), steps=4, restarts=1, curve=0)
    found = {}
    for name, evaluation in (("usual", usual), ("asked", replace(usual, sees=1 / RARE))):
        report = evaluation(Masking(), images_of(1200), Key(0))
        assert report.robust_accuracy == 1.0
        found[name] = {flag.name: flag for flag in report.flags}
    for flag in ("linf: noise beats gradients", "linf: square beats gradients"):
        assert not found["usual"][flag].raised
        assert "more of 100 images (seen from 3.00% on)" in found["usual"][flag].says
        assert found["asked"][flag].raised
        assert found["asked"][flag].value == pytest.approx(1 / RARE)
        assert "0.25% more of 1,200 images (seen from 0.25% on)" in found["asked"][flag].says
    assert not any(found["asked"][f"linf: more {what} help"].raised for what in ("steps", "restarts"))


def test_fewer_images_than_it_takes_are_said() -> None:
    """One image of 400 is what luck may be: the flag stays down and says from which share on it sees one."""
    evaluation = Robustness((Linf(0.1),), steps=4, restarts=1, curve=0, sees=1 / RARE)
    report = evaluation(Masking(), images_of(400), Key(0))
    (flag,) = [flag for flag in report.flags if flag.name == "linf: noise beats gradients"]
    assert not flag.raised
    assert "0.25% more of 400 images (seen from 0.75% on)" in flag.says


def test_the_images_that_a_share_takes() -> None:
    assert [images_for(share) for share in (1.0, 0.01, 0.005, 1 / 400)] == [3, 300, 600, 1200]
    for sees, checks in ((0.0, 100), (1.5, 100), (0.01, 0)):
        with pytest.raises(ValueError, match="share of the images in"):
            Robustness((Linf(0.1),), sees=sees, checks=checks)
