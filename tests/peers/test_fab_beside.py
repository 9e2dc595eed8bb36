"""FAB beside its authors' code: the same points, as far as float32 lets two programs take the same way."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from robust_train.attacks.fab import FAB
from robust_train.keyed import Key
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import Single, pyautoattack
from tests.peers.classifiers import small_cnn, some_images

pytest.importorskip("pyautoattack")

EVERYTHING = (Linf(1.0), L2(8.0), L1(64.0))  # balls that hold every image: what fools at all counts
WHICH: tuple[tuple[Single, int], ...] = (("fab-t", 1), ("fab", 0))


@pytest.mark.parametrize("threat", EVERYTHING, ids=lambda threat: threat.use)
@pytest.mark.parametrize(("which", "targets"), WHICH)
def test_one_run_finds_points_as_near_as_the_authors_code_does(which, targets, threat):
    network, (images, _) = small_cnn(), some_images(40)
    labels = network(images).argmax(1)
    theirs = pyautoattack(threat, which, steps=25, goals=1)(network, images, labels)
    distance = threat.distance(images, theirs)
    assert (distance > 0).all()
    ours = FAB(threat, 25, targets).nearest(network, images, labels, Key(0)).distance
    assert_close(ours.median(), distance.median(), rtol=0.005, atol=0)
    assert ((ours / distance - 1).abs() < 0.002).float().mean() > 0.9  # a rounded tie may part two ways
