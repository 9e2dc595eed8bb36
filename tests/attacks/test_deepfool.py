"""Moosavi-Dezfooli et al. 2016: what DeepFool must do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.deepfool import DeepFool
from robust_train.keyed import Key
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(3)


def two_classes(images: Tensor) -> Tensor:
    """z = (3 x_1 - 4 x_2, 0)."""
    score = images.flatten(1) @ images.new_tensor([3.0, -4.0])
    return torch.stack([score, torch.zeros_like(score)], 1)


def several_classes(count: int = 20) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear network of 7 classes, images in the middle of the box and their classes; W [7, 48]."""
    torch.manual_seed(0)
    layer = nn.Linear(48, 7, bias=False).double()
    layer.weight.data *= torch.linspace(1, 3, 7)[:, None]  # the likeliest class is then not always the nearest
    images = 0.5 + 0.4 * (torch.rand(count, 3, 4, 4).double() - 0.5)
    network = nn.Sequential(nn.Flatten(), layer)
    return network, images, network(images).argmax(1), layer.weight.detach()


def radii(network: nn.Module, images: Tensor, labels: Tensor, weight: Tensor, dual: int) -> Tensor:
    """[B, 7] (z_y - z_k) / ||w_y - w_k||_dual, inf for the label: how far each class is on a linear network."""
    logits = network(images).detach()
    gaps = logits.gather(1, labels[:, None]) - logits
    length = (weight[labels][:, None] - weight).norm(p=dual, dim=2)
    return (gaps / length).scatter(1, labels[:, None], torch.inf)


@pytest.mark.parametrize(
    ("threat", "move"), [(L2(1.0), (-0.024, 0.032)), (Linf(1.0), (-0.2 / 7, 0.2 / 7))], ids=["l2", "linf"]
)
def test_on_two_linear_classes_the_step_is_the_margin_over_the_dual_norm(threat, move):
    """w = (3, -4), x = (.6, .4), margin .2: .2 / 5 = .04 in L2 and .2 / 7 in L-infinity, and 2 % further."""
    images = torch.tensor([0.6, 0.4], dtype=torch.float64).view(1, 1, 1, 2)
    found = DeepFool(threat, 50).nearest(two_classes, images, torch.tensor([0]), KEY)
    assert_close((found.points - images).flatten(), 1.02 * torch.tensor(move, dtype=torch.float64))
    assert_close(found.distance, threat.distance(images, found.points))


@pytest.mark.parametrize(("threat", "dual"), [(L2(1.0), 2), (Linf(1.0), 1)], ids=["l2", "linf"])
def test_of_several_linear_classes_the_nearest_face_is_met(threat, dual):
    network, images, labels, weight = several_classes()
    found = DeepFool(threat, 50).nearest(network, images, labels, KEY)
    wanted = radii(network, images, labels, weight, dual)
    assert_close(found.distance, 1.02 * wanted.amin(1))
    assert torch.equal(network(found.points).argmax(1), wanted.argmin(1))


def test_of_two_candidates_the_runner_up_is_met_though_another_is_nearer():
    network, images, labels, weight = several_classes()
    second = network(images).topk(2).indices[:, 1:]
    wanted = radii(network, images, labels, weight, 2)
    runner_up = wanted.gather(1, second).squeeze(1)
    found = DeepFool(L2(1.0), 1, candidates=2).nearest(network, images, labels, KEY)
    assert (runner_up > wanted.amin(1)).any()  # else this shows nothing
    met = network(found.points).argmax(1) == second.squeeze(1)  # beyond it another class may lead already
    assert met.any()
    assert_close(found.distance[found.fooled], 1.02 * runner_up[found.fooled])


@pytest.mark.parametrize("threat", [L2(1.0), Linf(1.0)], ids=["l2", "linf"])
def test_on_a_curved_network_the_boundary_is_met_from_beyond_and_in_the_box(threat):
    """A little before the point the class is still the label's: the path ends at the first that fools."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 5)).double()
    images = (1.4 * torch.rand(30, 1, 4, 4) - 0.2).clamp(0, 1).double()
    labels = network(images).argmax(1)
    found = DeepFool(threat, 50).nearest(network, images, labels, KEY)
    assert found.fooled.all()
    assert (network(found.points).argmax(1) != labels).all()
    assert found.points.amin() >= 0
    assert found.points.amax() <= 1
    back = images + 0.9 * (found.points - images)
    assert (network(back).argmax(1) == labels).float().mean() > 0.9


def test_an_image_that_is_wrong_when_clean_stays_and_one_that_never_falls_is_at_infinity():
    def constant(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] * 0 + images.new_tensor([1.0, 0.0])

    images = torch.rand(2, 1, 2, 2)
    found = DeepFool(L2(1.0), 3).nearest(constant, images, torch.tensor([0, 1]), KEY)
    assert torch.equal(found.points, images)
    assert found.distance.tolist() == [torch.inf, 0.0]


def test_a_tie_that_the_label_wins_is_left():
    images = torch.tensor([0.4, 0.3], dtype=torch.float64).view(1, 1, 1, 2)  # 3 x_1 = 4 x_2
    assert two_classes(images)[0, 0].abs() < 1e-15
    found = DeepFool(L2(1.0), 3).nearest(lambda x: two_classes(x).clamp(min=0), images, torch.tensor([0]), KEY)
    assert not found.fooled.any()  # where nothing slopes there is no face to go to
    found = DeepFool(L2(1.0), 3).nearest(two_classes, images, torch.tensor([0]), KEY)
    assert 0 < found.distance.item() < 3e-4


def test_images_that_have_fallen_cost_nothing_more():
    network, images, labels, _ = several_classes()
    seen: list[int] = []

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return network(images)

    DeepFool(L2(1.0), 50).nearest(counted, images, labels, KEY)
    assert seen == [20, 20, 20]  # the image, where its one step led, and the verdict: nothing of the other 48 steps


@pytest.mark.parametrize(
    ("threat", "fields", "words"),
    [
        (L1(1.0), {"steps": 5}, "threat=l1"),
        (L2(1.0), {"steps": 0}, "steps=0"),
        (L2(1.0), {"steps": 5, "candidates": 1}, "candidates=1"),
        (L2(1.0), {"steps": 5, "overshoot": -0.1}, "overshoot=-0.1"),
    ],
)
def test_what_cannot_be_is_refused(threat, fields, words):
    with pytest.raises(ValueError, match=words):
        DeepFool(threat, **fields)
