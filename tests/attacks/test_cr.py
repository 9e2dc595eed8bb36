"""Constraint relaxation: what falls is what can fall on linear networks, and hopeless classes cost little."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.apgd import APGD
from robust_train.attacks.cr import CR
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key, uniform
from robust_train.losses import correct, cross_entropy, margin
from robust_train.models.network import Network
from robust_train.nouns import Raising
from robust_train.objectives.madry import Madry
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of
from tests.claims.digits_training import accuracy, trained
from tests.evaluate.linear import Linear

KEY = Key(3)


class Recorded(nn.Module):
    """A network and the points it was differentiated at, and how many images it has seen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.points, self.seen = network, [], 0
        self.classes = getattr(network, "classes", None)

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        if images.requires_grad:
            self.points.append(images.detach().clone())
        return self.network(images)


class Flat(nn.Module):
    """Logits (0.03, 0, 0, 0) whatever the image: always near, never fooled."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([0.03, 0.0, 0.0, 0.0]) + 0 * images.flatten(1).sum(1, keepdim=True)


def small(classes: int = 4) -> Network:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, classes)
    return Network(nn.Sequential(*layers), classes).double().eval()


def near_the_boundary(count: int, by: float) -> tuple[Tensor, Tensor]:
    """Images and labels of `small` with a margin of `by` or less, labelled as it says."""
    torch.manual_seed(1)
    images = torch.rand(400, 3, 6, 6).double()
    logits = small()(images).detach()
    labels = logits.argmax(1)
    rows = (margin(logits, labels) < by).nonzero().flatten()[:count]
    return images[rows], labels[rows]


@pytest.mark.parametrize("scale", [1.0, 0.01], ids=["large-logits", "small-logits"])
def test_on_a_linear_network_exactly_the_images_within_their_radius_fall(scale: float) -> None:
    """The radii are closed forms: min_j (z_y - z_j) / ||w_y - w_j||_1."""
    images, labels = images_of()
    network = ManyClasses(scale)
    radius = network.radius(images, labels, "linf")
    eps = float(radius.sort().values[30:32].mean())
    standing = CR(Linf(eps), classes=11, rounds=1, steps=30).search(network, images, labels, KEY)
    clear = (radius / eps - 1).abs() > 1e-4
    assert int(clear.sum()) > 55
    assert torch.equal(~standing.fallen[clear], radius[clear] > eps)
    assert torch.equal(correct(network(standing.found), labels) == 0, standing.fallen)
    assert float((standing.found - images).abs().max()) <= eps * (1 + 1e-5)
    assert float(standing.found.min()) >= 0
    assert float(standing.found.max()) <= 1


def test_an_image_that_stands_is_left_at_the_worst_corner_of_its_ball() -> None:
    """Two classes, box out of reach: the margin there is the clean one less eps ||w||_1."""
    network = Linear()
    images = 0.5 + 0.19 * network.weight.detach().sign().view(1, 3, 6, 6)
    targets = torch.tensor([1])
    found = CR(Linf(0.15), classes=1, rounds=1, steps=30)(network, images, targets, KEY)
    worst = margin(network(images), targets) - 0.15 * network.scale * network.weight.abs().sum()
    assert_close(margin(network(found), targets), worst, rtol=1e-5, atol=0)


def test_a_class_is_given_up_after_two_thirds_of_the_period_whose_step_its_margin_exceeds() -> None:
    """Margins in the worst corner against 0.5, 0.25, 0.125, 0.0625, 0.05; below 0.05 every round is gone through."""
    worst = torch.tensor([0.6, 0.3, 0.15, 0.1, 0.055, 0.04])
    network = Linear()
    with torch.no_grad():
        network.scale = float(10 / network.weight.abs().sum())
    far = (0.05 + worst / 10).view(-1, 1, 1, 1)
    images = 0.5 + far * network.weight.detach().sign().view(1, 3, 6, 6)
    standing = CR(Linf(0.05)).search(network, images, torch.ones(6, dtype=torch.int64), KEY)
    assert not bool(standing.fallen.any())
    assert (standing.steps - 10).tolist() == [20, 50, 80, 110, 140, 5 * 150]


def test_an_image_far_from_every_class_costs_thirty_units_and_its_three_classes_twenty_steps() -> None:
    images, labels = images_of()
    network = ManyClasses(1e3)
    standing = CR(Linf(1e-4)).search(network, images, labels, KEY)
    clear = network.radius(images, labels, "linf") > 1e-3
    assert int(clear.sum()) > 30
    assert set(standing.steps[clear].tolist()) == {10 + 3 * 20}


def test_it_costs_at_most_what_it_says_and_that_where_every_class_is_always_near() -> None:
    assert CR(Linf(0.1)).cost() == 5363
    attack, network = CR(Linf(0.1), rounds=2, steps=75), Recorded(Flat())
    attack(network, torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64), KEY)
    gradients = sum(len(points) for points in network.points)
    assert gradients == 4 * (10 + 2 * 3 * 75)
    assert network.seen + gradients == 4 * attack.cost()


def plain(network: Network, image: Tensor, label: int, eps: float, key: Key, rounds: int, steps: int) -> list[Tensor]:
    """The points at which one image's gradients are taken, as the method is described; it must not fall."""

    def slope(point: Tensor, value) -> Tensor:
        point = point.clone().requires_grad_()
        return torch.autograd.grad(value(network(point[None])[0]), point)[0]

    def kept(point: Tensor, radius: float) -> Tensor:
        return torch.minimum(torch.maximum(point, image - radius), image + radius).clamp(0, 1)

    def drawn(key: Key, size: float) -> Tensor:
        return (2 * uniform(key, (1, *image.shape), dtype=image.dtype)[0] - 1) * size

    points = []
    point = (image + drawn(key.of("warm-up"), eps)).clamp(0, 1)
    for step in range(10):
        points.append(point)
        g = slope(point, lambda z: cross_entropy(z[None], torch.tensor([label]))[0])
        point = kept(point + (0.25 if step == 5 else 0.5) * eps * g.sign(), eps)
    likeliest = [j for j in network(point[None])[0].argsort(descending=True).tolist() if j != label][:3]
    near = dict.fromkeys(likeliest, True)
    for turn in range(rounds):
        tried, near = near, dict.fromkeys(likeliest, False)
        for rank, goal in enumerate(likeliest):
            if not tried[goal]:
                continue
            attempt, scale = 3 * turn + rank, 1.0
            point = (image + drawn(key.of("try").at(attempt), eps)).clamp(0, 1)
            for step in range(steps):
                if step % 30 == 0:
                    scale = max(scale / 2, 0.05)
                if step % 30 == 20:
                    point = kept(point, eps - eps * scale)
                    noise = drawn(key.of("noise").at(attempt).at(step // 30), eps * scale)
                    point = (point + noise).clamp(0, 1)
                points.append(point)
                logits = network(point[None])[0].detach()
                gap = float(logits[label] - logits[goal])
                g = slope(point, lambda z, goal=goal: z[goal] - z[label])
                point = kept(point + eps * scale * g.sign(), eps + eps * scale if step % 30 < 10 else eps)
                if step % 30 <= 10:
                    logits = network(kept(point, eps)[None])
                    near[goal] |= bool(margin(logits, torch.tensor([label])) < 0.05)
                else:
                    near[goal] |= gap < 0.05
                if step % 30 == 19 and gap > scale:
                    break
    return points


def test_its_gradients_are_taken_where_the_published_algorithm_takes_them() -> None:
    """Against the definition, one image at a time and without packing; images that stand, some of them narrowly."""
    images, labels = near_the_boundary(6, 0.1)
    attack, compared, lengths = CR(Linf(0.02), rounds=2, steps=45, compact=1), 0, set()
    for row in range(len(images)):
        network, key = Recorded(small()), KEY.rows(torch.tensor([row]))
        standing = attack.search(network, images[row : row + 1], labels[row : row + 1], key)
        if bool(standing.fallen):
            continue
        points = plain(small(), images[row], int(labels[row]), 0.02, key, 2, 45)
        assert len(network.points) == len(points) == int(standing.steps)
        for ours, theirs in zip(network.points, points, strict=True):
            assert_close(ours[0], theirs, rtol=0, atol=1e-12)
        compared += 1
        lengths.add(len(points))
    assert compared >= 3
    assert len(lengths) > 2  # some classes were given up, and others came near


def test_the_warm_up_moves_by_half_the_radius_and_once_by_a_quarter() -> None:
    """A loss whose slope turns at every step keeps the points inside, where nothing but the step moves them."""

    class Leaning(Recorded):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + 1e-3 * images.flatten(1).mean(1, keepdim=True)

    network = Leaning(Flat())

    def turning(logits: Tensor, targets: Tensor) -> Tensor:
        return (-1) ** len(network.points) * logits[:, 0]

    images, labels = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    CR(Linf(0.1), rounds=1, steps=1).search(network, images, labels, KEY, Raising(turning))
    moves = torch.stack(network.points[:10]).diff(dim=0).abs().flatten(1).amax(1)
    assert_close(moves / 0.1, torch.tensor([0.5] * 5 + [0.25] + [0.5] * 3))


@pytest.mark.parametrize("compact", [1, 7, 1000])
def test_how_often_images_are_packed_changes_nothing(compact: int) -> None:
    images, labels = near_the_boundary(40, 0.4)
    one, other = (
        CR(Linf(0.02), rounds=2, steps=60, compact=n).search(small(), images, labels, KEY) for n in (10, compact)
    )
    assert 3 < int(one.fallen.sum()) < 37
    assert torch.equal(one.steps, other.steps)
    assert_close(one.found, other.found, rtol=0, atol=1e-12)


def test_an_image_alone_is_attacked_as_in_its_batch() -> None:
    images, labels = near_the_boundary(5, 0.3)
    attack, key = CR(Linf(0.02), rounds=2, steps=30), KEY.rows(torch.arange(5))
    whole = attack(small(), images, labels, key)
    alone = [attack(small(), images[r : r + 1], labels[r : r + 1], key[r : r + 1]) for r in range(5)]
    assert_close(torch.cat(alone), whole, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_on_a_trained_network_it_agrees_with_apgd_and_never_stands_above_pgd_50() -> None:
    """Within 0.5 % of APGD-T, the strongest part of AutoAttack, on held-out digits."""
    network = trained(Madry(PGD(Linf(0.15), 7, 0.04)), epochs=20)
    attacks = {"cr": CR(Linf(0.15)), "pgd": PGD(Linf(0.15), 50, 0.0075), "t": APGD(Linf(0.15), 100, targets=9)}
    kept = {name: accuracy(network, attack) for name, attack in attacks.items()}
    assert kept["cr"] <= kept["pgd"]
    assert abs(kept["cr"] - kept["t"]) <= 0.005


def test_fields_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="use a multiple of 3"):
        CR(Linf(0.1), period=31)
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        CR(Linf(0.1), rounds=0)
