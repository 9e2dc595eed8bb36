"""Attacks made of attacks, and the union of balls. [docs/methods/generalized-at.md]"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from robust_train.attacks.combine import Restarts, WorstOf
from robust_train.attacks.msd import MSD
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Attack, Raising
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

KEY = Key(2)


def curved() -> Network:
    torch.manual_seed(4)
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)), 3).double().eval()


def some_images(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return torch.rand(count, 1, 4, 4).double(), torch.arange(count) % 3


@dataclass(frozen=True)
class Fixed(Attack):
    """Gives images whose pixels are a known number each."""

    pixels: tuple[float, ...]
    threat = Linf(1.0)

    def __call__(self, network, images, targets, key, goal=None):
        return images.new_tensor(self.pixels).view(-1, 1).expand_as(images)

    def cost(self) -> float:
        return 5


def answers(images: torch.Tensor) -> torch.Tensor:
    """Class 0 below 0.5, class 1 above; the loss below, of class 0, is the distance from 0.4."""
    pixel = images.flatten(1)[:, :1]
    return torch.cat([0.5 - pixel, pixel - 0.5], 1)


def distance(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (0.5 - logits[:, 0] - 0.4).abs()


def test_the_worst_fools_first_and_then_has_the_larger_loss():
    images, targets = torch.zeros(3, 2), torch.zeros(3).long()
    # fooled with a small loss against right with a large one; both fooled; both right
    first, second = Fixed((0.55, 0.7, 0.3)), Fixed((0.1, 0.9, 0.45))
    found = WorstOf((first, second))(answers, images, targets, KEY, Raising(distance))
    assert_close(found[:, 0], torch.tensor([0.55, 0.9, 0.3]))
    found = WorstOf((first, second), by="loss")(answers, images, targets, KEY, Raising(distance))
    assert_close(found[:, 0], torch.tensor([0.1, 0.9, 0.3]))


def test_restarts_never_do_worse_than_any_of_their_starts():
    network, (images, targets) = curved(), some_images()
    pgd = PGD(Linf(0.15), 1, 0.1)
    found = Restarts(pgd, 4)(network, images, targets, KEY)
    verdict, value = correct(network(found), targets), cross_entropy(network(found), targets)
    for start in range(4):
        alone = pgd(network, images, targets, KEY.of("restart").at(start))
        right, loss = correct(network(alone), targets), cross_entropy(network(alone), targets)
        assert (verdict <= right).all()
        assert (value >= loss)[verdict == right].all()
    assert Restarts(pgd, 4).label == "pgd1"


def test_one_restart_is_the_attack_and_costs_no_more():
    network, (images, targets) = curved(), some_images()
    pgd = PGD(Linf(0.15), 2, 0.1)
    assert torch.equal(
        Restarts(pgd, 1)(network, images, targets, KEY), pgd(network, images, targets, KEY.of("restart").at(0))
    )
    assert Restarts(pgd, 1).cost() == pgd.cost()


def test_the_union_of_threat_models_is_no_easier_than_any_of_them():
    network, (images, _) = curved(), some_images(300)
    targets = network(images).argmax(1)
    attacks = tuple(PGD(t, 5, s, "zero") for t, s in ((Linf(0.02), 0.01), (L2(0.07), 0.04), (L1(0.14, top=2), 0.1)))
    union = correct(network(WorstOf(attacks)(network, images, targets, KEY)), targets)
    alone = [correct(network(attack(network, images, targets, KEY)), targets) for attack in attacks]
    assert torch.equal(union, torch.stack(alone).amin(0))
    assert union.mean() < max(right.mean() for right in alone)  # else this shows nothing


@pytest.mark.parametrize(("threat", "size"), [(Linf(0.1), 0.05), (L2(0.4), 0.2), (L1(1.0, top=3), 0.5)])
def test_msd_in_one_ball_is_pgd_with_the_best_iterate(threat, size):
    network, (images, targets) = curved(), some_images()
    msd = MSD((threat,), 4, (size,))(network, images, targets, KEY)
    assert torch.equal(msd, PGD(threat, 4, size, "zero", "best")(network, images, targets, KEY))


def test_msd_takes_for_each_image_the_step_that_hurts_most():
    network, (images, targets) = curved(), some_images()
    balls, sizes = (Linf(0.1), L2(0.4), L1(1.0, top=3)), (0.05, 0.2, 0.5)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(network(x), targets).sum(), x)
    candidates = [
        images + ball.step(images, ball.zero(images), gradient, s) for ball, s in zip(balls, sizes, strict=True)
    ]
    losses = torch.stack([cross_entropy(network(c), targets) for c in candidates]).detach()
    found = MSD(balls, 1, sizes)(network, images, targets, KEY)
    assert_close(cross_entropy(network(found), targets).detach(), losses.amax(0))
    assert len(losses.argmax(0).unique()) > 1  # else one ball alone would do


def test_the_loss_of_msd_never_falls_with_more_steps():
    network, (images, targets) = curved(), some_images()
    balls, sizes = (Linf(0.1), L1(1.0, top=3)), (0.15, 1.0)
    losses = [
        cross_entropy(network(MSD(balls, steps, sizes)(network, images, targets, KEY)), targets) for steps in range(6)
    ]
    assert (torch.stack(losses).diff(dim=0) >= -1e-12).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Restarts(PGD(Linf(0.1), 1, 0.1), 0), "restarts=0"),
        (lambda: WorstOf(()), "attacks is empty"),
        (lambda: MSD((Linf(0.1),), 1, ()), "1 threats and 0 step sizes"),
        (lambda: MSD((Linf(0.1),), -1, (0.1,)), "steps=-1"),
    ],
)
def test_combinations_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
