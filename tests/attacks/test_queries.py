"""Attacks that read no gradient: NES (Ilyas et al. 2018) and SPSA (Uesato et al. 2018)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from robust_train.attacks.queries import NES, SPSA, Walk, estimated
from robust_train.keyed import Key
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of

KEY = Key(3).rows(torch.arange(60))
BOTH = [NES(Linf(0.02), 10, 0.005, samples=20), SPSA(Linf(0.02), 10, samples=20)]
every = pytest.mark.parametrize("attack", BOTH, ids=["nes", "spsa"])


def test_on_a_linear_loss_the_estimate_is_the_mean_of_u_u_w():
    """(1 / n) sum u <u, w> exactly; with e_1 and e_2 that is w / 2."""
    w = torch.tensor([3.0, -4.0]).double()
    points = torch.rand(5, 2).double()
    units = [torch.tensor([[1.0, 0.0]]).double().expand(5, 2), torch.tensor([[0.0, 1.0]]).double().expand(5, 2)]
    assert_close(estimated(lambda at: at @ w, points, units, 0.001), (w / 2).expand(5, 2))
    torch.manual_seed(0)
    drawn = [torch.randn(5, 2).double() for _ in range(7)]
    mean = sum(u * (u @ w)[:, None] for u in drawn) / 7
    assert_close(estimated(lambda at: at @ w, points, drawn, 0.001), mean)


def test_on_a_quadratic_central_differences_are_exact():
    """l = x^2 along one axis: 2 x."""
    points = torch.rand(5, 1).double()
    assert_close(estimated(lambda at: at[:, 0] ** 2, points, [torch.ones(5, 1).double()], 0.1), 2 * points)


@pytest.mark.parametrize("attack", BOTH, ids=["nes", "spsa"])
def test_directions_are_of_mean_0_and_variance_1_and_every_image_has_its_own(attack):
    drawn = attack.direction(KEY, torch.zeros(60, 3, 20, 20))
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.var()) - 1) < 0.03
    assert len(drawn.flatten(1).unique(dim=0)) == 60
    if attack.use == "spsa":
        assert drawn.unique().tolist() == [-1, 1]


def test_nes_steps_along_a_running_mean_and_spsa_along_adams():
    images, slopes = torch.full((4, 3, 6, 6), 0.5).double(), torch.randn(3, 4, 3, 6, 6).double()
    zero = torch.zeros_like(images)
    nes = NES(L2(10.0), 3, 0.01, momentum=0.8)
    walk = Walk(images, zero, zero)
    for step, slope in enumerate(slopes):
        before, walk = walk, nes.moved(walk, images, slope, step)
    mean = 0.2 * (0.64 * slopes[0] + 0.8 * slopes[1] + slopes[2])
    assert_close(walk.points - before.points, 0.01 * mean / mean.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    point = images.clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=0.01, maximize=True)
    walk, spsa = Walk(images, zero, zero), SPSA(Linf(1.0), 3, 0.01)
    for step, slope in enumerate(slopes):
        walk = spsa.moved(walk, images, slope, step)
        point.grad = slope
        adam.step()
    assert_close(walk.points, point.detach())


@every
@pytest.mark.parametrize(("threat", "norm", "size"), [(Linf, "linf", 0.2), (L2, "l2", 0.2), (L1, "l1", 0.2)])
def test_on_a_linear_network_nothing_falls_within_its_radius_and_most_well_beyond_it(attack, threat, norm, size):
    network, (images, _) = ManyClasses(classes=2), images_of()
    labels = network(images).argmax(1)
    radii = network.radius(images, labels, norm)
    eps = float(radii.quantile(0.4))
    stepped = {"step_size": size * eps} if attack.use == "nes" else {}
    standing = replace(attack, threat=threat(eps), steps=20, samples=40, **stepped).search(network, images, labels, KEY)
    assert not standing.fallen[radii > eps].any()
    assert (threat(eps).distance(images, standing.found) <= eps * (1 + 1e-5) + 1e-6).all()
    assert torch.equal(network(standing.found).argmax(1) != labels, standing.fallen)
    if norm != "l1":  # whose steps move a few pixels
        assert standing.fallen[radii < eps / 2].all()


@every
def test_neither_chunk_nor_packing_nor_the_global_generator_decides_anything(attack):
    network, (images, labels) = ManyClasses().double(), images_of(24)
    images = images.double()
    whole = attack(network, images, labels, KEY[:24])
    torch.manual_seed(9)
    halved = [attack(network, images[rows], labels[rows], KEY[rows]) for rows in (slice(0, 7), slice(7, 24))]
    # differences of losses over 2 sigma: rounding is a thousand times larger there
    assert_close(torch.cat(halved), whole, rtol=0, atol=1e-9)
    assert_close(replace(attack, compact=1)(network, images, labels, KEY[:24]), whole, rtol=0, atol=1e-9)
    assert not torch.equal(attack(network, images, labels, Key(4).rows(KEY.row[:24])), whole)


@every
def test_what_stands_costs_what_the_attack_says_and_no_gradient(attack):
    network, (images, _) = ManyClasses(), images_of()
    labels = network(images).argmax(1)
    network.seen = 0
    attack = replace(attack, threat=Linf(1e-6))
    assert not attack.search(network, images, labels, KEY).fallen.any()
    assert network.seen == 60 * (attack.cost() - 1)  # no start is judged
    with torch.no_grad():  # a network without a gradient
        attack(lambda at: network(at.detach()), images, labels, KEY)


def test_senseless_numbers_are_refused():
    for changes, words in (
        ({"samples": 5}, "must be even"),
        ({"steps": -1}, "must not be negative"),
        ({"sigma": 0.0}, "sigma=0 must be positive"),
        ({"compact": 0}, "compact=0"),
        ({"momentum": 1.0}, "momentum=1 is not in"),
    ):
        with pytest.raises(ValueError, match=words):
            NES(**{"threat": Linf(0.1), "steps": 5, "step_size": 0.01} | changes)
