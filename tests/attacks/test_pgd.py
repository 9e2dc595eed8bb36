"""Madry et al. 2018: what PGD must do. [docs/methods/madry-pgd.md]"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key, integers
from robust_train.losses import cross_entropy
from robust_train.models.network import Network
from robust_train.nouns import Raising, Threat
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid

KEY = Key(5)


def linear(seed: int = 0, classes: int = 2) -> tuple[Network, torch.Tensor]:
    """A linear network on 4 x 4 images, and its weights [classes, 16]."""
    torch.manual_seed(seed)
    layer = nn.Linear(16, classes).double()
    return Network(nn.Sequential(nn.Flatten(), layer), classes).eval(), layer.weight.detach()


def curved(seed: int = 0, drop: float = 0.0) -> Network:
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Dropout(drop), nn.Linear(32, 3)
    return Network(nn.Sequential(*layers), 3).double()


def middle(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images far from the faces of the box, and labels of two classes."""
    torch.manual_seed(9)
    return 0.4 + 0.2 * torch.rand(count, 1, 4, 4).double(), torch.arange(count) % 2


def margin(network: Network, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = network(images).detach()
    return logits.gather(1, targets[:, None])[:, 0] - logits.gather(1, 1 - targets[:, None])[:, 0]


@pytest.mark.parametrize("start", ["random", "zero", "noise"])
@pytest.mark.parametrize(
    ("threat", "steps", "size", "dual"),
    [
        (Linf(0.05), 5, 0.02, lambda w: 0.05 * w.abs().sum()),  # ceil(2 eps / size) steps, from any start
        (L2(0.3), 1, 1000.0, lambda w: 0.3 * w.norm()),  # so long a step that the start does not count
        (L1(0.3, top=1), 1, 1000.0, lambda w: 0.3 * w.abs().max()),
    ],
    ids=["linf", "l2", "l1"],
)
def test_on_a_linear_network_the_worst_case_of_each_ball_is_its_dual_norm(threat, steps, size, dual, start):
    """Two classes, box out of reach: the margin falls by exactly eps times the dual norm of w_0 - w_1."""
    network, w = linear()
    images, targets = middle()
    adversarial = PGD(threat, steps, size, start)(network, images, targets, KEY)
    fall = margin(network, images, targets) - margin(network, adversarial, targets)
    assert_close(fall, dual(w[0] - w[1]).expand(len(images)), rtol=1e-6, atol=0)


def test_without_steps_and_start_the_image_stays():
    network, _ = linear()
    images, targets = middle()
    assert torch.equal(PGD(Linf(0.1), 0, 0.1, "zero")(network, images, targets, KEY), images)


def test_the_best_iterate_has_the_largest_loss_of_those_met():
    """A step far too long jumps to and fro; the best is at least the start and the last, and grows with the steps."""
    images, targets = middle()

    def network(images: torch.Tensor) -> torch.Tensor:
        wave = (20 * images.flatten(1).sum(1)).cos()
        return torch.stack([wave, -wave], 1)

    def loss_after(steps: int, keep: str) -> torch.Tensor:
        attack = PGD(L2(0.4), steps, 0.7, keep=keep)
        return cross_entropy(network(attack(network, images, targets, KEY)), targets).detach()

    best = torch.stack([loss_after(steps, "best") for steps in range(6)])
    last = torch.stack([loss_after(steps, "last") for steps in range(6)])
    assert_close(best, last.cummax(0).values)
    assert (last < best).any()  # else this shows nothing


def test_a_drawn_target_is_approached_and_stays_over_the_steps():
    """Targeted descent of CE(f, t) with t from the key: the same as ascent of -CE with those targets given."""
    network = curved()
    images, targets = middle()
    rows = KEY.rows(torch.arange(len(images)))
    drawn = integers(rows.of("targets"), (len(images),), 3)
    found = PGD(Linf(0.1), 4, 0.03, targets="random")(network, images, targets, KEY)
    wanted = PGD(Linf(0.1), 4, 0.03)(network, images, drawn, KEY, Raising(lambda f, t: -cross_entropy(f, t)))
    assert torch.equal(found, wanted)
    before, after = (cross_entropy(network(x), drawn).detach() for x in (images, found))
    assert (after < before).all()


def test_drawn_targets_are_even_over_the_classes_and_may_be_the_label():
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :5]

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets)
        return logits.sum(1)

    PGD(Linf(0.1), 1, 0.1, targets="random")(network, torch.rand(5000, 8), torch.zeros(5000).long(), KEY, Raising(loss))
    share = torch.bincount(seen[-1], minlength=5) / 5000
    assert (share - 0.2).abs().max() < 4 * (0.16 / 5000) ** 0.5


def test_noise_starts_near_the_image_where_a_divergence_has_a_gradient():
    """At x itself KL(p || q) is flat: only rounding would choose a direction. From noise it climbs to the sphere."""
    network = curved()
    images, targets = middle()
    reference = network(images).detach()

    def divergence(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return F.kl_div(logits.log_softmax(1), reference.softmax(1), reduction="none").sum(1)

    x = images.clone().requires_grad_()
    assert torch.autograd.grad(divergence(network(x), targets).sum(), x)[0].abs().max() < 1e-12
    moved = PGD(L2(0.5), 3, 0.2, "noise")(network, images, targets, KEY, Raising(divergence))
    assert_close((moved - images).flatten(1).norm(dim=1), torch.full((6,), 0.5).double())
    start = PGD(L2(0.5), 0, 0.2, "noise")(network, images.repeat(200, 1, 1, 1), targets.repeat(200), KEY)
    assert abs(float((start - images.repeat(200, 1, 1, 1)).std()) / 1e-3 - 1) < 0.02


def test_the_averaged_gradient_of_a_noisy_network_is_that_of_its_draws():
    """eot = 2 with redrawn masks: one step along the mean of the two gradients."""
    network = curved(drop=0.5)
    images, targets = middle()
    key = KEY.rows(torch.arange(len(images)))
    adversarial = PGD(L2(0.3), 1, 0.2, "zero", eot=2, drops="redrawn")(network, images, targets, key)
    total = torch.zeros_like(images)
    for draw in range(2):
        with network.drops(key.of("drops").at(draw)):
            x = images.clone().requires_grad_()
            total += torch.autograd.grad(cross_entropy(network(x), targets).sum(), x)[0]
    step = 0.2 * total / total.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert_close(adversarial, images + step)


class Still(Threat):
    """A threat model that records what an attack asks of it."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def start(self, images, key):
        return images.new_zeros(images.shape)

    def apply(self, images, z):
        return images + z

    def step(self, images, z, gradient, size):
        self.gradients.append(gradient)
        return z

    def distance(self, images, adversarial):
        return images.new_zeros(len(images))

    def zero(self, images):
        return images.new_zeros(images.shape)


@pytest.mark.parametrize(("drops", "alike"), [("off", True), ("frozen", True), ("redrawn", False)])
def test_masks_are_off_frozen_or_redrawn_over_the_steps(drops, alike):
    network, threat = curved(drop=0.5), Still()
    images, targets = middle()
    PGD(threat, 2, 0.1, drops=drops)(network, images, targets, KEY)
    assert torch.equal(*threat.gradients) is alike
    calm = Still()
    PGD(calm, 1, 0.1)(network, images, targets, KEY)
    assert torch.equal(calm.gradients[0], threat.gradients[0]) is (drops == "off")


def test_a_pyramid_of_pixels_is_targeted_sign_descent_to_the_bit():
    network = curved()
    images, targets = middle()
    pyramid = PGD(Pyramid(0.1, (1,), (1.0,)), 5, 0.03, "zero", targets="random")
    linf = PGD(Linf(0.1), 5, 0.03, "zero", targets="random")
    assert_close(
        pyramid(network, images, targets, KEY), linf(network, images, targets, KEY), rtol=0, atol=1e-15
    )  # the ball's step passes through x + z - x


@pytest.mark.parametrize(("fields", "words"), [({"steps": -1}, "steps=-1"), ({"steps": 1, "eot": 0}, "eot=0")])
def test_counts_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        PGD(Linf(0.1), step_size=0.1, **fields)
