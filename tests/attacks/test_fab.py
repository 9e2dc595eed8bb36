"""Croce and Hein 2020: what FAB must do (arXiv 1907.02044; FAB-T: 2003.01690)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.fab import FAB
from robust_train.keyed import Key
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import CLASSES, DUAL, ManyClasses, images_of

BALLS = {"linf": Linf, "l2": L2, "l1": L1}
every = pytest.mark.parametrize("norm", BALLS)
KEY = Key(3).rows(torch.arange(60))


def halfway(radii: Tensor) -> float:
    """A radius that about half of the images survive, none of them by less than the others around allow."""
    order = radii[radii > 0].sort().values
    middle = len(order) // 2 - 5 + int(order[len(order) // 2 - 5 : len(order) // 2 + 5].diff().argmax())
    return float(order[middle] + order[middle + 1]) / 2


@pytest.mark.parametrize("targets", [CLASSES - 1, 0], ids=["targeted", "untargeted"])
@every
def test_on_a_linear_network_what_falls_is_what_has_its_radius_within_eps(norm, targets):
    network, (images, labels) = ManyClasses(), images_of()
    radii = network.radius(images, labels, norm)
    threat = BALLS[norm](halfway(radii))
    standing = FAB(threat, 20, targets).search(network, images, labels, KEY)
    assert torch.equal(standing.fallen, radii <= threat.eps)
    assert torch.equal(network(standing.found).argmax(1) != labels, radii <= threat.eps)
    assert (threat.distance(images, standing.found) <= threat.eps).all()
    assert torch.equal(standing.found[radii <= 0], images[radii <= 0])


@pytest.mark.parametrize("targets", [CLASSES - 1, 0], ids=["targeted", "untargeted"])
@every
def test_on_a_linear_network_the_nearest_point_is_the_radius_away(norm, targets):
    """1.05 radii after a step; after the next, from 0.945, (1 - a) (0.945 + 1.05 0.055) + a 1.05, a = 0.055 / 1.055."""
    network, (images, labels) = ManyClasses().double(), images_of()
    images = 0.5 + 0.3 * (images.double() - 0.5)  # so that not even L1's one pixel meets the box
    radii = network.radius(images, labels, norm)
    alpha = 0.055 / 1.055
    second = (1 - alpha) * (0.945 + 1.05 * 0.055) + alpha * 1.05
    right = radii > 0
    for steps, share in ((1, 1.05), (2, second)):
        found = FAB(BALLS[norm](0.01), steps, targets).nearest(network, images, labels, KEY)
        assert_close(found.distance[right], share * radii[right])
        assert_close(BALLS[norm](0.01).distance(images, found.points), found.distance)
        assert (network(found.points).argmax(1) != labels).all()
        assert not found.distance[~right].any()
        assert torch.equal(found.points[~right], images[~right])


def recording(network: nn.Module, points: list[Tensor]):
    """The network as a function that keeps what it is asked."""

    def asked(images: Tensor) -> Tensor:
        points.append(images.detach().clone())
        return network(images)

    return asked


@every
def test_a_restart_begins_half_of_eps_away_and_steps_with_a_tenth_of_the_images_own_step(norm):
    """Two classes whose boundary is far off: both steps are of like length, so that the mixture's cap decides."""
    network = ManyClasses(classes=2).double()
    images = 0.5 + 0.3 * (images_of(4)[0].double() - 0.5)
    labels = network(images).argmax(1)
    threat = BALLS[norm](0.2 * float(network.radius(images, labels, norm).min()))
    points: list[Tensor] = []
    FAB(threat, 1, restarts=2).search(recording(network, points), images, labels, Key(3))
    _, clean, _, start, moved = points
    assert torch.equal(clean, images)
    assert_close(threat.distance(images, start), torch.full((4,), threat.eps / 2).double())

    normal = network.weight[0] - network.weight[1]
    unit = threat.unit(normal.detach().view(1, 3, 6, 6))  # <w, unit> is w's dual norm: the step of least length
    gaps = [(u.flatten(1) - 0.5) @ normal / normal.norm(p=DUAL[norm]) for u in (start, images)]
    steps = [u - 1.05 * gap.detach().view(-1, 1, 1, 1) * unit for u, gap in zip((start, images), gaps, strict=True)]
    assert_close(moved, 0.9 * steps[0] + 0.1 * steps[1])


@every
def test_a_start_at_random_depends_on_the_key_and_the_images_row_alone(norm):
    network, (images, labels) = ManyClasses(), images_of(20)

    def starts(key: Key, rows: slice) -> Tensor:
        points: list[Tensor] = []
        threat = BALLS[norm](1e-4)
        FAB(threat, 1, restarts=2).search(recording(network, points), images[rows], labels[rows], key)
        return points[3]

    whole = starts(KEY[:20], slice(0, 20))  # 18 of them: images 0 and 10 are wrong when clean
    assert torch.equal(starts(KEY[11:14], slice(11, 14)), whole[9:12])
    assert not torch.equal(starts(Key(4).rows(KEY.row[:20]), slice(0, 20)), whole)


@pytest.mark.parametrize(("targets", "restarts"), [(3, 1), (2, 2), (0, 1)])
def test_what_stands_costs_what_the_attack_says(targets, restarts):
    network, (images, labels) = ManyClasses(classes=10), images_of()
    with torch.no_grad():
        labels = network(images).argmax(1)
    network.seen = 0
    attack = FAB(Linf(1e-6), 7, targets, restarts)
    assert not attack.search(network, images, labels, KEY).fallen.any()
    runs = max(1, targets) * restarts
    assert network.seen == 60 * (1 + runs * 2 * 7)  # forwards; each step has gradients of one goal, or of 9 classes
    backwards = runs * 7 * (1 if targets else 9)
    assert network.seen / 60 + backwards <= attack.cost() <= network.seen / 60 + backwards + runs


def test_an_image_that_fell_is_not_attacked_again():
    network, (images, labels) = ManyClasses(), images_of()
    standing = FAB(Linf(1.0), 50, 9, compact=5).search(network, images, labels, KEY)
    assert standing.fallen.all()
    right = int((standing.logits.argmax(1) == labels).sum())
    assert network.seen <= 60 + (2 * 5 + 1) * right * 9 / 8  # five steps of the first goal, and the judgement


@every
def test_the_logits_scale_changes_nothing(norm):
    """A network of logits 1e-12 as large has gradients that a threshold on |w| would take for none."""
    images, labels = images_of()
    plain, small = (
        FAB(BALLS[norm](0.01), 10, 2).nearest(ManyClasses(scale), images, labels, KEY) for scale in (1.0, 1e-12)
    )
    assert_close(small.distance, plain.distance, rtol=1e-3, atol=1e-6)


def curved() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        layers = nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 8, 3, 2), nn.Tanh(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(72, 7)).double()


def pictures(network: nn.Module) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = (1.2 * torch.rand(16, 1, 8, 8, generator=generator) - 0.1).clamp(0, 1).double()
    with torch.no_grad():
        return images, network(images).argmax(1)


@every
def test_more_steps_and_more_targets_never_lead_further_away(norm):
    network = curved()
    images, labels = pictures(network)
    attacks = [FAB(BALLS[norm](0.1), steps, targets) for steps, targets in ((3, 1), (12, 1), (12, 6))]
    found = [attack.nearest(network, images, labels, KEY[:16]).distance for attack in attacks]
    assert (found[1] <= found[0]).all()
    assert (found[2] <= found[1]).all()
    assert found[2].isfinite().all()


@every
def test_the_nearest_point_lies_at_the_boundary(norm):
    """A hundredth nearer to the image, the network says its label."""
    network = curved()
    images, labels = pictures(network)
    found = FAB(BALLS[norm](0.1), 40, 6).nearest(network, images, labels, KEY[:16])
    assert (network(found.points).argmax(1) != labels).all()
    assert (network(images + 0.97 * (found.points - images)).argmax(1) == labels).all()
    assert found.points.min() >= 0
    assert found.points.max() <= 1


@every
def test_within_a_distance_the_same_images_are_near_enough(norm):
    network = curved()
    images, labels = pictures(network)
    attack = FAB(BALLS[norm](0.1), 12, 3, compact=4)
    anywhere = attack.nearest(network, images, labels, KEY[:16]).distance
    middle = float(anywhere.sort().values[7:9].mean())  # between two images: at one, rounding would decide on it
    within = attack.nearest(network, images, labels, KEY[:16], within=middle).distance
    assert torch.equal(within <= middle, anywhere <= middle)
    assert_close(within[anywhere > middle], anywhere[anywhere > middle])


def test_a_network_that_nothing_fools_is_infinitely_far_from_being_fooled():
    images = images_of(4)[0]

    def constant(images: Tensor) -> Tensor:
        return torch.stack([1 + 0 * images.flatten(1).sum(1), 0 * images.flatten(1).sum(1)], 1)

    found = FAB(Linf(0.1), 5).nearest(constant, images, torch.zeros(4, dtype=torch.int64), KEY[:4])
    assert torch.equal(found.points, images)
    assert found.distance.isinf().all()
    assert not found.fooled.any()


def test_bad_input_gets_a_message():
    with pytest.raises(ValueError, match="restarts=0 must be at least 1"):
        FAB(Linf(0.1), 10, restarts=0)
    with pytest.raises(ValueError, match="raises no goal"):
        FAB(Linf(0.1), 10)(ManyClasses(), *images_of(), KEY, torch.nn.functional.cross_entropy)
    assert [FAB(Linf(0.1), 100, 9).label, FAB(Linf(0.1), 100).label, FAB(L2(1), 20, 9).label] == [
        "fab-t",
        "fab",
        "fab-t-20",
    ]
