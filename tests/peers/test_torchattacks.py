"""Our gradient attacks and those of torchattacks: the same points, from the same start."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.fgsm import FGSM
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import torchattacks_fgsm, torchattacks_pgd
from tests.peers.classifiers import small_cnn, some_images

pytest.importorskip("torchattacks")


@pytest.mark.parametrize(("threat", "size"), [(Linf(0.1), 0.03), (L2(0.8), 0.3)], ids=["linf", "l2"])
def test_pgd_from_the_image_is_torchattacks_pgd(threat, size):
    """Ten steps, with a size that reaches the sphere; images at black and white, so that the box counts too."""
    network, (images, targets) = small_cnn(), some_images()
    ours = PGD(threat, 10, size, start="zero")(network, images, targets, Key(0))
    theirs = torchattacks_pgd(threat, 10, size)(network, images, targets)
    assert threat.distance(images, ours).max() > 0.99 * threat.eps
    assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_fgsm_is_torchattacks_fgsm():
    network, (images, targets) = small_cnn(), some_images()
    ours = FGSM(Linf(0.1))(network, images, targets, Key(0))
    assert_close(ours, torchattacks_fgsm(Linf(0.1))(network, images, targets), rtol=0, atol=1e-6)


class Faint(nn.Module):
    """Two classes, logits (0, 1e-9 sum x): a gradient whose size is known, and is hardly one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1e-9))

    def forward(self, images: Tensor) -> Tensor:
        score = self.scale * images.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def test_where_gradients_vanish_the_l2_step_of_torchattacks_shrinks_and_ours_does_not():
    """64 pixels, 4 images: its mean loss has ||g|| = 1e-9 sqrt(64) / 2 / 4, and the step is ||g|| / (||g|| + 1e-10)."""
    images, targets, threat = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64), L2(1.0)
    ours = PGD(threat, 1, 0.5, start="zero")(Faint(), images, targets, Key(0))
    theirs = torchattacks_pgd(threat, 1, 0.5)(Faint(), images, targets)
    length = 1e-9 * 8 / 2 / 4
    assert_close(threat.distance(images, ours), torch.full((4,), 0.5), rtol=1e-5, atol=0)
    assert_close(threat.distance(images, theirs), torch.full((4,), 0.5 * length / (length + 1e-10)), rtol=1e-4, atol=0)


def test_what_our_pages_say_of_its_defaults() -> None:
    """docs/methods/attack-survey.md and robust-evaluation.md, of 3.5.1: other attacks under the same names."""
    import torchattacks

    network = small_cnn()
    assert inspect.signature(torchattacks.CW.__init__).parameters["c"].default == 1  # and no search over it
    assert inspect.signature(torchattacks.Square.__init__).parameters["resc_schedule"].default is True
    cascade = torchattacks.AutoAttack(network)._autoattack.attacks
    assert [getattr(attack, "steps", None) for attack in cascade] == [10, 10, 10, None]
