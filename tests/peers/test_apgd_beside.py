"""APGD beside its authors' code: from the same point the same way, as far as float32 lets two programs take it."""

from __future__ import annotations

import pytest
import torch

from robust_train.attacks.apgd import _Walk
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key
from robust_train.losses import cross_entropy, dlr
from robust_train.nouns import Raising
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools.peer_attacks import STANDARD, _autoattack
from tests.peers.classifiers import small_cnn, some_images

pytest.importorskip("pyautoattack")


@pytest.mark.parametrize("threat", [Linf(0.02), L2(0.2), L1(1.0)], ids=lambda threat: threat.use)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_a_run_from_a_given_point_is_the_authors(loss, threat):
    """Thirty steps: the largest loss of every image but a few, where a rounded tie parts two ways."""
    network, (images, _) = small_cnn(), some_images(40)
    labels = network(images).argmax(1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    start = images + threat.project(images, noise)
    theirs = _autoattack(network, images.device, threat, STANDARD, 30, 1, 10, 0).apgd
    theirs.loss = loss
    theirs.init_hyperparam(images)
    with torch.no_grad():
        _, _, expected, _ = theirs.attack_single_run(images, labels, x_init=start)
    losses, key = cross_entropy if loss == "ce" else dlr, Key(0).naming(images)
    see = Sight(network, images, labels, key, Raising(losses))
    best = _Walk(threat, 30, None, images, see.every).run(see, start, key, None)
    reached, gain = losses(network(best), labels), expected - losses(network(start), labels)
    assert (gain > 0.004).float().mean() > 0.9
    assert ((reached - expected).abs() <= 0.001 * gain).float().mean() > 0.9
