"""What attacks that look for the nearest point share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.carlini import CarliniWagner
from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.nearest import Nearest, NearestAttack, measured, wrong_classes
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.threats.ball import Ball
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(8)


def curved(count: int = 40) -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(3)
    layers = nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 5)
    network = Network(nn.Sequential(*layers), 5)
    images = (1.2 * torch.rand(count, 1, 4, 4) - 0.1).clamp(0, 1)
    return network, images, network.eval()(images).argmax(1)


@dataclass(frozen=True)
class Given(NearestAttack):
    """Finds the points it was made with."""

    threat: Ball
    points: Tensor

    def cost(self) -> float:
        return 0

    def nearest(self, network, images, targets, key, within=None):
        return Nearest(self.points, self.threat.distance(images, self.points))


@pytest.mark.parametrize("threat", [L2(2.0), Linf(0.3)], ids=["l2", "linf"])
def test_a_point_inside_the_ball_is_given_to_the_bit(threat):
    """Beside the boundary a rounding of x + (p - x) would decide whether it fools."""
    torch.manual_seed(4)
    images, points = 0.01 * torch.rand(5, 1, 8, 8), 0.25 * torch.rand(5, 1, 8, 8)
    assert not torch.equal(images + (points - images), points)  # else this shows nothing
    given = Given(threat, points)(lambda images: images.flatten(1), images, torch.zeros(5).long(), KEY)
    assert torch.equal(given, points)


@pytest.mark.parametrize("threat", [L2(0.3), Linf(0.08)], ids=["l2", "linf"])
def test_called_as_an_attack_it_brings_what_lies_beyond_onto_the_ball(threat):
    network, images, labels = curved()
    attack = DeepFool(threat, 20)
    found, given = attack.nearest(network, images, labels, KEY), attack(network, images, labels, KEY)
    inside = found.distance <= threat.eps
    assert inside.any()
    assert not inside.all()
    assert (network(given).argmax(1) != labels)[inside].all()
    distance = threat.distance(images, given)
    assert distance.max() <= threat.eps + 1e-6
    assert_close(distance[~inside], torch.full_like(distance[~inside], threat.eps), rtol=1e-5, atol=0)


def test_points_are_worth_their_distance_nothing_or_infinity():
    network, images, labels = curved(3)
    wrong = torch.stack([(labels[0] + 1) % 5, labels[1], labels[2]])  # the first is wrong when clean
    points = images + torch.tensor([0.0, 0.0, 0.1]).view(-1, 1, 1, 1)
    points[2] = DeepFool(L2(1.0), 50).nearest(network, images, labels, KEY).points[2]
    found = measured(L2(1.0), network, images, wrong, points, KEY)
    assert found.fooled.tolist() == [True, False, True]
    assert found.distance[:2].tolist() == [0.0, torch.inf]
    assert_close(found.distance[2], (points[2] - images[2]).norm())
    assert torch.equal(found.points[:2], images[:2])


def test_a_network_that_is_attacked_in_bfloat16_is_searched_in_float32_and_without_dropout():
    network, images, labels = curved(6)
    attack = CarliniWagner(L2(1.0), 20, searches=2, first=1.0)
    plain = attack.nearest(network, images, labels, KEY)
    network.settle(precision="bf16")
    network.train()
    half = attack.nearest(network, images, labels, KEY)
    assert torch.equal(half.points, plain.points)
    assert network.precision == "bf16"


def test_drawn_classes_are_wrong_and_all_others_alike():
    labels = torch.arange(6000) % 4
    drawn = wrong_classes(KEY.rows(torch.arange(6000)), labels, 4)
    assert (drawn != labels).all()
    share = torch.bincount((drawn - labels) % 4, minlength=4)[1:] / 6000
    assert (share - 1 / 3).abs().max() < 4 * (2 / 9 / 6000) ** 0.5


def test_a_loss_to_raise_is_refused():
    network, images, labels = curved(2)
    with pytest.raises(ValueError, match="deepfool looks for the nearest point"):
        DeepFool(L2(1.0), 5)(network, images, labels, KEY, nn.functional.cross_entropy)
