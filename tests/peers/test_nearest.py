"""Our minimum-norm attacks beside those of Foolbox and torchattacks: the same distances."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.carlini import CarliniWagner, ElasticNet
from robust_train.attacks.deepfool import DeepFool
from robust_train.keyed import Key
from robust_train.threats.ball import Ball
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.peers.classifiers import small_cnn, some_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it asks scipy for a namespace that is going
    foolbox = pytest.importorskip("foolbox")
    torchattacks = pytest.importorskip("torchattacks")

KEY = Key(0)


def right_images(count: int = 16) -> tuple[nn.Module, Tensor, Tensor]:
    """The small network, images up to both faces of the box, and the classes it takes them for."""
    network, (images, _) = small_cnn(), some_images(count)
    return network, images, network(images).argmax(1)


def distance(threat: Ball, network: nn.Module, images: Tensor, labels: Tensor, points: Tensor) -> Tensor:
    """[B], inf where a point does not fool."""
    return threat.distance(images, points).masked_fill(network(points).argmax(1) == labels, torch.inf)


def foolboxs(attack, threat: Ball, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    points = attack.run(foolbox.PyTorchModel(network, bounds=(0, 1)), images, labels)
    return distance(threat, network, images, labels, points)


@pytest.mark.parametrize(
    ("threat", "name"), [(L2(1.0), "L2DeepFoolAttack"), (Linf(1.0), "LinfDeepFoolAttack")], ids=["l2", "linf"]
)
def test_deepfool_is_as_near_as_foolboxs(threat, name):
    network, images, labels = right_images()
    ours = DeepFool(threat, 50).nearest(network, images, labels, KEY).distance
    theirs = foolboxs(getattr(foolbox.attacks, name)(), threat, network, images, labels)
    assert ours.isfinite().all()
    assert_close(ours, theirs, rtol=1e-2, atol=0)


def test_deepfool_is_as_near_as_torchattacks_or_nearer():
    """It adds the overshoot to each step from where the last led, and so goes further; 3 of 4 of its points fool."""
    network, images, labels = right_images()
    ours = DeepFool(L2(1.0), 50).nearest(network, images, labels, KEY).distance
    theirs = distance(L2(1.0), network, images, labels, torchattacks.DeepFool(network, steps=50)(images, labels))
    assert theirs.isfinite().sum() > 8
    assert (ours < 1.01 * theirs).all()


def test_carlini_and_wagner_is_as_near_as_foolboxs():
    """Without the early stop, which there is the batch's and here each image's."""
    network, images, labels = right_images()
    ours = CarliniWagner(L2(1.0), 120, searches=5, first=0.1, abort=False).nearest(network, images, labels, KEY)
    attack = foolbox.attacks.L2CarliniWagnerAttack(5, 120, initial_const=0.1, abort_early=False)
    theirs = foolboxs(attack, L2(1.0), network, images, labels)
    assert ours.fooled.all()
    assert_close(ours.distance, theirs, rtol=3e-2, atol=0)


def test_carlini_and_wagner_at_one_c_is_as_near_as_torchattacks():
    network, images, labels = right_images()
    ours = CarliniWagner(L2(1.0), 80, searches=1, first=20.0, abort=False).nearest(network, images, labels, KEY)
    points = torchattacks.CW(network, c=20, steps=80)(images, labels)
    theirs = distance(L2(1.0), network, images, labels, points)
    assert ours.fooled.sum() > 8
    both = ours.fooled & theirs.isfinite()
    assert both.sum() > 8
    assert_close(ours.distance[both], theirs[both], rtol=3e-2, atol=0)


@pytest.mark.parametrize("rule", ["EN", "L1"])
def test_the_elastic_net_is_as_near_as_foolboxs(rule):
    network, images, labels = right_images()
    ours = ElasticNet(L1(1.0), 60, searches=4, first=1.0, abort=False, beta=0.01, rule=rule)
    attack = foolbox.attacks.EADAttack(
        4, 60, initial_const=1.0, abort_early=False, regularization=0.01, decision_rule=rule
    )
    found = ours.nearest(network, images, labels, KEY)
    assert found.fooled.sum() > 8
    theirs = foolboxs(attack, L1(1.0), network, images, labels)
    assert_close(found.distance[found.fooled], theirs[found.fooled], rtol=1e-2, atol=0)
