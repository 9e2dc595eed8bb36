"""BIM and MI-FGSM: steps of signs, with a momentum of normalised gradients that remembers where it was going."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.momentum import BIM, MIFGSM
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Raising
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(4)


def curved() -> Network:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4)
    return Network(nn.Sequential(*layers), 4).double().eval()


def some() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(5, 3, 4, 4).double(), torch.arange(5) % 4


def plain(network: Network, images: Tensor, labels: Tensor, steps: int, mu: float, ahead: bool, scales: int) -> Tensor:
    """The iteration as its authors write it, L-infinity 0.1 in steps of 0.02."""
    point, v = images, torch.zeros_like(images)
    for _ in range(steps):
        at = (point + 0.02 * mu * v if ahead else point).clone().requires_grad_()
        losses = [cross_entropy(network(at / 2**i), labels).sum() for i in range(scales)]
        (g,) = torch.autograd.grad(sum(losses) / scales, at)
        v = mu * v + g / g.abs().mean((1, 2, 3), keepdim=True)
        point = torch.minimum(torch.maximum(point + 0.02 * v.sign(), images - 0.1), images + 0.1).clamp(0, 1)
    return point


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(("mu", "scales"), [(1.0, 1), (0.4, 1), (1.0, 3)])
def test_its_steps_are_the_published_ones(ahead: bool, mu: float, scales: int) -> None:
    images, labels = some()
    attack = MIFGSM(Linf(0.1), 8, 0.02, mu, ahead, scales)
    expected = plain(curved(), images, labels, 8, mu, ahead, scales)
    assert_close(attack(curved(), images, labels, KEY), expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, plain(curved(), images, labels, 8, 0.0, False, 1))


def test_without_momentum_it_is_bim_and_bim_is_pgd_from_the_image() -> None:
    images, labels = some()
    for ball, size in ((Linf(0.1), 0.02), (L2(0.5), 0.1)):
        bim = BIM(ball, 6, size)(curved(), images, labels, KEY)
        assert torch.equal(bim, PGD(ball, 6, size, start="zero")(curved(), images, labels, KEY))
        assert_close(MIFGSM(ball, 6, size, momentum=0.0)(curved(), images, labels, KEY), bim, rtol=0, atol=1e-12)


def test_where_the_gradient_is_constant_the_momentum_changes_nothing() -> None:
    """After T steps v is T g / mean |g|, whose sign is g's: a loss that is linear in the image."""
    images, labels = some()
    weights = torch.randn(48, dtype=torch.float64)

    def linear(logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 0]

    def network(images: Tensor) -> Tensor:
        score = images.flatten(1) @ weights
        return torch.stack([score] + 3 * [torch.zeros_like(score)], 1)

    found = MIFGSM(Linf(0.1), 7, 0.01)(network, images, labels, KEY, Raising(linear))
    assert torch.equal(found, BIM(Linf(0.1), 7, 0.01)(network, images, labels, KEY, Raising(linear)))
    worst = (images + 0.07 * weights.sign().view(1, 3, 4, 4)).clamp(0, 1)
    assert_close(found, worst, rtol=0, atol=1e-12)


def test_an_image_without_a_gradient_stays_where_it_is() -> None:
    images, labels = some()
    found = MIFGSM(Linf(0.1), 3, 0.05)(lambda images: 0 * images.flatten(1)[:, :4], images, labels, KEY)
    assert torch.equal(found, images)


def test_fields_that_mean_nothing_are_refused() -> None:
    for fields in ({"steps": -1}, {"steps": 1, "momentum": -0.5}, {"steps": 1, "scales": 0}):
        with pytest.raises(ValueError, match="must"):
            MIFGSM(Linf(0.1), step_size=0.1, **fields)
