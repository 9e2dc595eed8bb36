"""Our projected gradient ascent and Foolbox's: the same points, from the same start."""

from __future__ import annotations

import warnings

import pytest
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import foolbox_pgd
from tests.peers.classifiers import small_cnn, some_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it asks scipy for a namespace that is going
    pytest.importorskip("foolbox")


@pytest.mark.parametrize(("threat", "size"), [(Linf(0.1), 0.03), (L2(0.8), 0.3)], ids=["linf", "l2"])
def test_pgd_from_the_image_is_foolboxs(threat, size):
    network, (images, targets) = small_cnn(), some_images()
    ours = PGD(threat, 10, size, start="zero")(network, images, targets, Key(0))
    theirs = foolbox_pgd(threat, 10, size)(network, images, targets)
    assert threat.distance(images, ours).max() > 0.99 * threat.eps
    assert_close(ours, theirs, rtol=0, atol=1e-6)
