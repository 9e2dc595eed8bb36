"""Chen et al. 2020: what HopSkipJump must do (arXiv 1904.02144)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from robust_train.attacks.hopskipjump import HopSkipJump, outward
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Raising
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of

KEY = Key(3).rows(torch.arange(60))
both = pytest.mark.parametrize(("threat", "norm"), [(L2(1.0), "l2"), (Linf(0.1), "linf")], ids=["l2", "linf"])


def test_at_a_half_space_the_estimate_points_along_its_normal():
    """B = 1,000 in the plane: cosine above 0.99, with the boundary through the point and a little aside of it."""
    torch.manual_seed(0)
    w = torch.tensor([3.0, -4.0]).double() / 5
    points = torch.full((20, 2), 0.5).double()
    for aside in (0.0, 0.005):
        v = outward(
            points,
            torch.full((20,), 0.01).double(),
            (torch.randn(20, 2).double() for _ in range(1000)),
            lambda at, aside=aside: (at - points) @ w > aside,
        )
        assert (v @ w / v.norm(dim=1)).min() > 0.99


def test_the_baseline_takes_out_what_all_decisions_share():
    """Directions that are not of mean zero: without it v would lean to their mean. Where all agree, v is that mean."""
    points, spread = torch.full((1, 2), 0.5).double(), torch.full((1,), 0.01).double()
    directions = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.6, 0.8]])]
    directions = [direction.double() for direction in directions]
    answers = iter([True, True, False, True, True, True])
    phi, mean = (1, 1, -1), 1 / 3
    expected = sum((p - mean) * u for p, u in zip(phi, directions, strict=True)) / 2
    assert_close(outward(points, spread, directions, lambda at: torch.tensor([next(answers)])), expected)
    agreed = sum(directions) / 2
    assert_close(outward(points, spread, directions, lambda at: torch.tensor([next(answers)])), agreed)


@both
def test_on_a_linear_network_it_comes_near_the_radius_and_never_within(threat, norm):
    network, (images, labels) = ManyClasses(classes=2), images_of(20)
    with torch.no_grad():
        labels = network(images).argmax(1)
        labels[::10] = 1 - labels[::10]
    radii = network.radius(images, labels, norm)
    found = HopSkipJump(threat, 10, first=80).nearest(network, images, labels, KEY[:20])
    right = radii > 0
    assert found.fooled.all()
    assert (found.distance[right] >= radii[right] * (1 - 1e-4)).all()
    assert (found.distance[right] / radii[right]).median() < 1.25
    assert not found.distance[~right].any()
    assert torch.equal(found.points[~right], images[~right])
    assert (network(found.points).argmax(1) != labels).all()
    assert_close(threat.distance(images, found.points), found.distance)
    assert found.points.min() >= 0
    assert found.points.max() <= 1


@both
def test_more_steps_come_nearer(threat, norm):
    network, (images, _) = ManyClasses(), images_of(20)
    labels = network(images).argmax(1)
    far, near = (HopSkipJump(threat, steps, first=30).nearest(network, images, labels, KEY[:20]) for steps in (0, 6))
    assert (near.distance <= far.distance * (1 + 1e-3)).all()  # a point may be sent back by 1e-4 of its distance
    assert near.distance.median() < 0.7 * far.distance.median()


@both
def test_called_it_gives_images_in_the_ball_that_fool_where_the_radius_allows(threat, norm):
    network, (images, _) = ManyClasses(classes=2), images_of(20)
    labels = network(images).argmax(1)
    radii = network.radius(images, labels, norm)
    ball = type(threat)(float(radii.quantile(0.6)))
    adversarial = HopSkipJump(ball, 10, first=80)(network, images, labels, KEY[:20])
    assert (ball.distance(images, adversarial) <= ball.eps * (1 + 1e-5)).all()
    fell = network(adversarial).argmax(1) != labels
    assert not fell[radii > ball.eps].any()
    assert fell[radii < ball.eps / 1.5].all()


@both
def test_neither_the_other_images_nor_the_global_generator_decide_anything(threat, norm):
    network, (images, labels) = ManyClasses().double(), images_of(12)
    images, attack = images.double(), HopSkipJump(threat, 3, first=20)
    whole = attack.nearest(network, images, labels, KEY[:12])
    torch.manual_seed(9)
    halved = [attack.nearest(network, images[rows], labels[rows], KEY[rows]) for rows in (slice(0, 5), slice(5, 12))]
    assert_close(torch.cat([half.points for half in halved]), whole.points, rtol=0, atol=1e-9)
    other = attack.nearest(network, images, labels, Key(4).rows(KEY.row[:12]))
    assert not torch.equal(other.points, whole.points)


def test_an_image_that_no_start_fools_has_failed_and_costs_are_bounded():
    network, (images, _) = ManyClasses(classes=2), images_of(6)
    never = torch.stack([torch.ones(6), torch.zeros(6)], 1)
    found = HopSkipJump(L2(1.0), 3, tries=4).nearest(
        lambda at: never[: len(at)], images, torch.zeros(6).long(), KEY[:6]
    )
    assert found.distance.isinf().all()
    assert torch.equal(found.points, images)

    labels = network(images).argmax(1)
    network.seen = 0
    attack = HopSkipJump(Linf(0.1), 3, first=20)
    attack.nearest(network, images, labels, KEY[:6])
    assert network.seen <= 6 * attack.cost()


def test_other_threat_models_and_senseless_numbers_are_refused():
    with pytest.raises(ValueError, match="l2 or linf"):
        HopSkipJump(L1(1.0))
    with pytest.raises(ValueError, match="first=1 must be at least 2"):
        HopSkipJump(L2(1.0), first=1)
    images, goal = torch.zeros(1, 3, 6, 6), Raising(cross_entropy)
    with pytest.raises(ValueError, match="raises no goal"):
        HopSkipJump(L2(1.0), 1)(lambda images: images.flatten(1), images, torch.zeros(1).long(), KEY[:1], goal)
