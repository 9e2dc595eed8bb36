"""Szegedy et al. 2014: what the box-constrained L-BFGS attack must do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.lbfgs import LBFGS, _Solver
from robust_train.attacks.nearest import wrong_classes
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(6)
IMAGE = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)


def two_classes(images: Tensor) -> Tensor:
    """z_1 - z_2 = 2 x_1 - .6."""
    score = 2 * images.flatten(1)[:, 0] - 0.6
    return torch.stack([score, torch.zeros_like(score)], 1)


def some(count: int, *layers: nn.Module, wide: float = 1.2) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images up to the faces of the box where `wide` is above 1, and their classes."""
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), *layers).double()
    images = (0.5 + wide * (torch.rand(count, 1, 4, 4) - 0.5)).clamp(0, 1).double()
    return network, images, network(images).argmax(1)


def test_the_least_perturbation_of_two_linear_classes():
    """r = (-.2, 0), of RMS .1414214 over the two pixels."""
    found = LBFGS(L2(1.0), bisections=20).nearest(two_classes, IMAGE, torch.tensor([0]), KEY)
    assert_close((found.points - IMAGE).flatten(), torch.tensor([-0.2, 0.0]).double(), rtol=0, atol=1e-5)
    assert_close(found.distance / math.sqrt(2), torch.tensor([0.1414214]).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("c", "lands"), [(2.4, True), (2.6, False)])
def test_with_c_on_the_distance_the_class_flips_at_c_of_five_halves(c, lands):
    """c ||r||^2 + CE: 2 c r = -1 at the boundary, where the class has probability 1/2 and slope 2."""
    solver = _Solver(two_classes, two_classes, IMAGE, torch.tensor([1]), 100, 1)
    assert solver._lands(math.log10(1 / c)) is lands


def test_what_is_minimised_has_the_gradient_that_the_solver_is_told():
    """By central differences of ||r||^2 + kappa CE, at a point away from the image."""
    network, images, labels = some(1, nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 4))
    solver = _Solver(network, network, images, (labels + 1) % 4, 100, 1)
    place = solver.start * 0.7 + 0.1
    value, slope = solver._value(place, 3.0)
    logits = network(torch.from_numpy(place).view(1, 1, 4, 4)).detach()
    moved = torch.from_numpy(place - solver.start)
    assert value == pytest.approx(float(moved.square().sum() + 3 * nn.functional.cross_entropy(logits, solver.goal)))
    for pixel in range(16):
        ends = []
        for side in (1e-5, -1e-5):
            aside = place.copy()
            aside[pixel] += side
            ends.append(solver._value(aside, 3.0)[0])
        assert slope[pixel] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_what_lands_for_one_kappa_lands_for_every_larger_one():
    network, images, labels = some(6, nn.Linear(16, 4), wide=0.4)
    goals = wrong_classes(KEY.of("goal"), labels, 4)
    landed = []
    for image, goal in zip(images.split(1), goals.split(1), strict=True):
        solver = _Solver(network, network, image, goal, 100, 1)
        landed.append([solver._lands(power) for power in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)])
    assert all(row == sorted(row) for row in landed)
    assert len({sum(row) for row in landed}) > 1  # else this shows nothing


def test_the_nearest_of_all_classes_of_a_linear_network_is_its_radius():
    """Of a confident one, whose cross-entropy is the hinge of the nearest class; else the other classes push too."""
    network, images, labels = some(8, nn.Linear(16, 5), wide=0.2)
    for parameter in network.parameters():
        parameter.data *= 100
    found = LBFGS(L2(1.0), targets=4).nearest(network, images, labels, KEY)
    weight, logits = network[1].weight.detach(), network(images).detach()
    gaps = (logits.gather(1, labels[:, None]) - logits) / (weight[labels][:, None] - weight).norm(dim=2)
    radius = gaps.scatter(1, labels[:, None], torch.inf).amin(1)
    assert (found.distance >= radius * (1 - 1e-9)).all()
    assert_close(found.distance, radius, rtol=5e-3, atol=0)


def test_no_gradient_ascent_finds_a_nearer_point():
    network, images, labels = some(6, nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 4))
    found = LBFGS(L2(1.0), targets=3).nearest(network, images, labels, KEY)
    assert found.fooled.all()
    met = 0
    for share in (0.5, 0.8, 0.95, 1.1, 1.5):
        for row in range(6):
            eps = share * found.distance[row].item()
            x, y = images[row : row + 1], labels[row : row + 1]
            point = PGD(L2(eps), 100, 2.5 * eps / 100, "zero")(network, x, y, KEY)
            if network(point).argmax() != y:
                met += 1
                assert (point - x).norm() >= (1 - 1e-3) * found.distance[row]
    assert met >= 6  # else this shows nothing


def test_points_are_in_the_box_and_use_its_faces():
    network, images, labels = some(4, nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 4))
    found = LBFGS(L2(1.0)).nearest(network, images, labels, KEY)
    assert found.points.amin() >= -1e-12
    assert found.points.amax() <= 1 + 1e-12
    assert ((found.points == 0) | (found.points == 1)).sum() > 4


def test_the_point_lands_on_the_class_that_the_key_draws():
    network, images, labels = some(6, nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 4))
    rows = torch.arange(10, 16)
    found = LBFGS(L2(1.0), bisections=2).nearest(network, images, labels, KEY.rows(rows))
    goals = wrong_classes(KEY.rows(rows).of("goal"), labels, 4)
    assert found.fooled.sum() > 3
    assert torch.equal(network(found.points).argmax(1)[found.fooled], goals[found.fooled])


def test_the_network_keeps_its_precision_and_its_verdict_counts():
    network, images, labels = some(3, nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 4))
    network, images = network.float(), images.float()
    found = LBFGS(L2(1.0)).nearest(network, images, labels, KEY)
    assert next(network.parameters()).dtype == found.points.dtype == torch.float32
    assert found.fooled.any()
    assert (network(found.points).argmax(1) != labels)[found.fooled].all()


def test_a_search_ends_with_the_first_point_that_is_near_enough():
    def solves(within: float | None) -> int:
        count = 0

        def counted(images: Tensor) -> Tensor:
            nonlocal count
            count += not torch.is_grad_enabled()  # the verdicts
            return two_classes(images)

        LBFGS(L2(1.0)).nearest(counted, IMAGE, torch.tensor([0]), KEY, within)
        return count - 2  # the clean image and the last verdict

    assert solves(None) == 3 + 10  # kappa .01, .1 and 1, which lands; ten bisections
    assert solves(1.0) == 3


@pytest.mark.parametrize(
    ("threat", "fields", "words"),
    [(Linf(0.1), {}, "threat=linf"), (L2(1.0), {"steps": 0}, "steps=0"), (L2(1.0), {"targets": -1}, "targets=-1")],
)
def test_what_cannot_be_is_refused(threat, fields, words):
    with pytest.raises(ValueError, match=words):
        LBFGS(threat, **fields)
