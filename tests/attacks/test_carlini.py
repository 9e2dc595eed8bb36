"""Carlini and Wagner 2017, and Chen et al. 2018: what the searches over c must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks import carlini
from robust_train.attacks.carlini import CarliniWagner, ElasticNet
from robust_train.attacks.nearest import wrong_classes
from robust_train.keyed import Key
from robust_train.losses import margin
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(4)
LABEL = torch.tensor([0])
IMAGE = torch.tensor([0.6, 0.4], dtype=torch.float64).view(1, 1, 1, 2)


def two_classes(images: Tensor) -> Tensor:
    """z = (3 x_1 - 4 x_2, 0): at IMAGE the margin is .2, ||w||_2 = 5."""
    score = images.flatten(1) @ images.new_tensor([3.0, -4.0])
    return torch.stack([score, torch.zeros_like(score)], 1)


def curved(count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """A smooth network of 5 classes, images up to the faces of the box, and their classes but for one image."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    nn.init.normal_(network[1].weight, std=0.5)  # else the boundary is far away
    images = (1.2 * torch.rand(count, 1, 4, 4) - 0.1).clamp(0, 1).double()
    labels = network(images).argmax(1)
    labels[-1] = (labels[-1] + 1) % 5
    return network, images, labels


def test_carlini_and_wagner_find_the_nearest_point_of_a_half_space():
    found = CarliniWagner(L2(1.0), 200).nearest(two_classes, IMAGE, LABEL, KEY)
    assert 0.04 < found.distance.item() < 0.0401
    assert_close((found.points - IMAGE).flatten(), torch.tensor([-0.024, 0.032]).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("beta", "least", "most"), [(0.0, 0.056, 0.0561), (1e-2, 0.05, 0.0501)], ids=["no shrinkage", "shrinkage"]
)
def test_shrinkage_leads_from_the_nearest_point_in_l2_to_the_nearest_in_l1(beta, least, most):
    """Without it (-.024, .032), of L1 norm .056; with it (0, .05): the pixel of the larger weight alone."""
    found = ElasticNet(L1(1.0), 200, beta=beta, rule="L1", abort=False).nearest(two_classes, IMAGE, LABEL, KEY)
    assert least < found.distance.item() < most


@pytest.mark.parametrize("searches", [9, 10])
def test_each_c_is_ten_times_the_last_until_an_image_falls_then_bisected(searches, monkeypatch):
    """min ||r||^2 + c (m - w r)^+ is r = c w / 2 up to the boundary: an image falls where c > 2 m / ||w||^2 = .016.

    From ten searches on the last is at the least c that fooled.
    """
    tried = []
    plain = carlini._Shrinking.__init__

    def spied(self, images, c, *rest):
        tried.append(c.item())
        plain(self, images, c, *rest)

    monkeypatch.setattr(carlini._Shrinking, "__init__", spied)
    attack = ElasticNet(L2(1.0), 100, searches, step_size=0.1, beta=0.0, abort=False)
    attack.nearest(two_classes, IMAGE, LABEL, KEY)
    wanted, c, low, high = [], 1e-3, 0.0, torch.inf
    for _ in range(9):
        wanted.append(c)
        low, high = (low, min(high, c)) if c > 0.016 else (max(low, c), high)
        c = 10 * c if high == torch.inf else (low + high) / 2
    assert tried == pytest.approx(wanted if searches == 9 else [*wanted, high])


def test_carlini_and_wagners_iterates_are_those_of_adam_behind_a_tanh():
    """torch's Adam and torch's derivative of the tanh, the best iterate by hand."""
    network, images, labels = curved()
    found = CarliniWagner(L2(1.0), 30, searches=1, step_size=0.05, first=2.0, abort=False, confidence=0.01).nearest(
        network, images, labels, KEY
    )
    w = (0.999999 * (2 * images - 1)).atanh().requires_grad_()
    adam = torch.optim.Adam([w], 0.05)
    best, least = images.clone(), torch.full((12,), torch.inf).double()
    for _ in range(30):
        point = (w.tanh() + 1) / 2
        gap, distance = margin(network(point), labels), (point - images).flatten(1).norm(dim=1)
        better = (gap < -0.01) & (distance < least)
        best[better], least[better] = point[better].detach(), distance[better].detach()
        adam.zero_grad()
        (distance.square() + 2 * gap.clamp(min=-0.01)).sum().backward()
        adam.step()
    right = network(images).argmax(1) == labels
    assert found.fooled[right].sum() > 3
    assert_close(found.points[right], best[right], rtol=0, atol=1e-9)
    assert_close(found.distance[right], least[right], rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", ["EN", "L1"])
def test_the_elastic_nets_iterates_are_those_of_its_algorithm(rule):
    """One pixel at a time in the shrinkage, autograd through the whole loss, the rule by hand."""
    network, images, labels = curved()
    beta, steps = 0.02, 40
    found = ElasticNet(
        L1(1.0), steps, searches=1, step_size=0.05, first=3.0, abort=False, beta=beta, rule=rule
    ).nearest(network, images, labels, KEY)
    best, least = images.clone(), torch.full((12,), torch.inf).double()
    s = v = images
    for step in range(steps):
        point = v.clone().requires_grad_()
        loss = (point - images).square().sum() + 3 * margin(network(point), labels).clamp(min=0).sum()
        (slope,) = torch.autograd.grad(loss, point)
        u = v - 0.05 * (1 - step / steps) ** 0.5 * slope
        new = images.clone()
        new = torch.where(u - images > beta, (u - beta).clamp(max=1), new)
        new = torch.where(u - images < -beta, (u + beta).clamp(min=0), new)
        v, s = new + step / (step + 3) * (new - s), new
        moved = (s - images).flatten(1)
        length = moved.abs().sum(1)
        score = length if rule == "L1" else beta * length + (moved**2).sum(1)
        better = (network(s).argmax(1) != labels) & (score < least)
        best[better], least[better] = s[better], score[better].detach()
    right = network(images).argmax(1) == labels
    assert found.fooled[right].sum() > 3
    assert_close(found.points[right], best[right], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "attack",
    [
        CarliniWagner(L2(1.0), 60, searches=3, step_size=0.05, first=1.0, targeted=True),
        ElasticNet(L1(1.0), 60, searches=3, first=1.0, targeted=True, abort=False),
    ],
    ids=["carlini-wagner", "ead"],
)
def test_towards_a_drawn_class_points_are_taken_for_it(attack):
    network, images, labels = curved()
    found = attack.nearest(network, images, labels, KEY.rows(torch.arange(12)))
    goals = wrong_classes(KEY.of("goal"), labels, 5)
    landed = found.fooled & (found.distance > 0)
    assert landed.sum() > 5
    assert torch.equal(network(found.points).argmax(1)[landed], goals[landed])


def test_confidence_is_the_lead_of_the_wrong_class():
    network, images, labels = curved()
    attack = CarliniWagner(L2(1.0), 100, searches=4, first=0.1, confidence=0.3)
    found = attack.nearest(network, images, labels, KEY)
    moved = found.fooled & (found.distance > 0)
    assert moved.sum() > 5
    lead = -margin(network(found.points), labels)[moved]
    assert lead.min() > 0.3
    assert lead.min() < 0.31


@pytest.mark.parametrize(
    "attack",
    [CarliniWagner(L2(1.0), 40, searches=3, first=0.1), ElasticNet(L1(1.0), 40, searches=3, first=1.0)],
    ids=["carlini-wagner", "ead"],
)
def test_an_image_is_searched_alone_whatever_its_batch(attack):
    """With the early stop on, which in the authors' code is the batch's."""
    network, images, labels = curved()
    whole = attack.nearest(network, images, labels, KEY)
    alone = [attack.nearest(network, images[row : row + 1], labels[row : row + 1], KEY) for row in range(12)]
    assert_close(torch.cat([found.distance for found in alone]), whole.distance, rtol=1e-9, atol=0)
    assert_close(torch.cat([found.points for found in alone]), whole.points, rtol=0, atol=1e-9)
    assert whole.points.amin() >= 0
    assert whole.points.amax() <= 1


def spent(attack: CarliniWagner, within: float | None) -> int:
    """Images seen by the network."""
    network, images, labels = curved()
    seen = []

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return network(images)

    attack.nearest(counted, images, labels, KEY, within)
    return sum(seen)


def test_images_that_are_near_enough_or_no_longer_descend_cost_nothing_more():
    full = CarliniWagner(L2(1.0), 50, searches=4, first=0.1, abort=False)
    assert spent(full, None) == 12 + 11 * 4 * 50 + 12  # one image is wrong when clean; 2 forwards a gradient
    assert spent(full, 1.0) < 0.6 * spent(full, None)
    assert spent(CarliniWagner(L2(1.0), 50, searches=4, first=0.1), None) < 0.9 * spent(full, None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CarliniWagner(Linf(0.1), 5), "threat=linf"),
        (lambda: ElasticNet(Linf(0.1), 5), "threat=linf"),
        (lambda: CarliniWagner(L2(1.0), 0), "steps=0"),
        (lambda: CarliniWagner(L2(1.0), 5, first=0.0), "first=0"),
        (lambda: CarliniWagner(L2(1.0), 5, confidence=-1.0), "confidence=-1"),
        (lambda: ElasticNet(L1(1.0), 5, beta=-1.0), "beta=-1"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
