"""JSMA: the most salient features move, few pixels change, and the class becomes what was wanted."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.jsma import JSMA
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.network import Network
from robust_train.threats.pixels import L0

KEY = Key(6)


class Given(nn.Module):
    """logits = W x + c of all features."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights, self.bias = weights, bias

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weights.T + self.bias


def small() -> Network:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(3 * 36, 24), nn.Tanh(), nn.Linear(24, 4)
    return Network(nn.Sequential(*layers), 4).double().eval()


def some(count: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.rand(count, 3, 6, 6).double()
    return images, small()(images).argmax(1)


def test_of_two_features_the_one_with_the_larger_product_of_help_and_harm_moves() -> None:
    """The target's gradients are (2, 1) and the others' (-1, -3): products 2 and 3, so the second feature."""
    network = Given(torch.tensor([[-1.0, -3.0], [2.0, 1.0]]), torch.tensor([2.0, -9.0]))
    images, labels = torch.tensor([[0.2, 0.3]]).view(1, 1, 1, 2), torch.tensor([0])
    for theta, moved in ((0.5, [0.2, 0.8]), (1.0, [0.2, 1.0])):
        found = JSMA(L0(2), 1, theta, together=1, towards="likeliest")(network, images, labels, KEY)
        assert_close(found.flatten(), torch.tensor(moved))
    both = JSMA(L0(2), 1, 0.5, towards="likeliest")(network, images, labels, KEY)
    assert_close(both.flatten(), torch.tensor([0.7, 0.8]))


@pytest.mark.parametrize("towards", ["away", "likeliest"])
@pytest.mark.parametrize("theta", [0.3, -0.3])
@pytest.mark.parametrize("together", [1, 2])
def test_each_step_moves_the_most_salient_set_of_all(together: int, theta: float, towards: str) -> None:
    """Against every set of features, on a linear network; upwards what helps, downwards what harms."""
    for seed in range(12):
        most_salient(seed, together, theta, towards)


def most_salient(seed: int, together: int, theta: float, towards: str) -> None:
    torch.manual_seed(seed)
    weights, image = torch.randn(3, 8), 0.4 + 0.2 * torch.rand(1, 2, 2, 2)
    network = Given(weights, torch.tensor([40.0, 0.0, -1.0]))
    found = JSMA(L0(4), 1, theta, together, towards)(network, image, torch.tensor([0]), KEY)
    t = 0 if towards == "away" else int(network(image)[0, 1:].argmax()) + 1
    turn = (1 if theta > 0 else -1) * (-1 if towards == "away" else 1)
    helps, harms = turn * weights[t], turn * (weights.sum(0) - weights[t])
    best, chosen = 0.0, ()
    for features in combinations(range(8), together):
        a, b = float(helps[list(features)].sum()), float(harms[list(features)].sum())
        if a > 0 > b and -a * b > best:
            best, chosen = -a * b, features
    expected = image.flatten().clone()
    expected[list(chosen)] += theta
    assert_close(found.flatten(), expected)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("eps", [1, 3])
def test_no_more_pixels_change_than_allowed_and_all_of_them_are_used(eps: int, together: int) -> None:
    """Of an image that is never fooled; features of pixels that have changed may change again."""
    images, labels = some()
    with torch.no_grad():
        network = small()
        network.model[-1].bias.zero_()
        own = nn.functional.one_hot(labels, 4) * 1e3
    found = JSMA(L0(eps), 40, 0.1, together)(lambda x: network(x) + own[: len(x)], images, labels, KEY)
    assert L0(eps).distance(images, found).tolist() == [eps] * 8
    assert float((found - images).abs().flatten(1).sum(1).mean()) > 4 * eps * 0.1  # more than some moves a pixel
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


@pytest.mark.parametrize("towards", ["away", "likeliest", "random"])
def test_with_enough_pixels_the_class_is_as_wanted(towards: str) -> None:
    images, labels = some()
    attack = JSMA(L0(36), 60, 1.0, 2, towards)
    found = attack(small(), images, labels, KEY)
    assert float(correct(small()(found), labels).mean()) <= 0.25
    assert float(attack.threat.distance(images, found).mean()) < 30
    if towards == "likeliest":
        second = small()(images).topk(2, dim=1).indices[:, 1]
        fooled = correct(small()(found), labels) == 0
        assert torch.equal(small()(found).argmax(1)[fooled], second[fooled])


def test_an_image_that_is_wrong_already_is_left_alone() -> None:
    images, labels = some()
    assert torch.equal(JSMA(L0(5), 5)(small(), images, (labels + 1) % 4, KEY), images)


def test_a_loss_is_refused() -> None:
    images, labels = some(1)
    with pytest.raises(ValueError, match="jsma raises no goal"):
        JSMA(L0(5), 5)(small(), images, labels, KEY, lambda logits, targets: logits[:, 0])
