"""AutoAttack is the worst of its attacks, each on what those before it left standing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from robust_train.attacks.apgd import APGD
from robust_train.attacks.autoattack import AutoAttack
from robust_train.attacks.fab import FAB
from robust_train.attacks.fgsm import FGSM
from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from tests.attacks.many_classes import ManyClasses, images_of

KEY = Key(4)


@pytest.mark.slow
@pytest.mark.parametrize("ball", [Linf, L2, L1])
def test_on_a_linear_network_its_accuracy_is_the_share_of_larger_radii(ball: type) -> None:
    """Equal to the closed form, image by image; for L2 and L1 with shorter runs of the same four attacks."""
    images, labels = images_of(20)
    network = ManyClasses()
    radius = network.radius(images, labels, ball.use)
    threat = ball(float(radius.sort().values[10:12].mean()))
    attack, eps = AutoAttack(threat), threat.eps
    if ball is not Linf:
        short = APGD(threat, 20), APGD(threat, 40, targets=9), FAB(threat, 20, targets=9), Square(threat, 200)
        attack = AutoAttack(threat, "custom", short)
    points = attack(network, images, labels, KEY)
    clear = (radius / eps - 1).abs() > 0.01
    assert int(clear.sum()) > 17
    assert torch.equal(correct(network(points), labels).bool()[clear], (radius > eps)[clear])
    assert float(ball(eps).distance(images, points).max()) <= eps * (1 + 1e-5)


def test_its_versions_are_the_published_ones() -> None:
    standard = AutoAttack(Linf(0.1)).members(10)
    assert standard == (
        APGD(Linf(0.1), 100), APGD(Linf(0.1), 100, targets=9), FAB(Linf(0.1), 100, targets=9), Square(Linf(0.1), 5000)
    )  # fmt: skip
    assert [attack.label for attack in standard] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    sparse = AutoAttack(L1(10.0)).members(10)
    assert (sparse[0].restarts, sparse[1].targets) == (5, 5)
    plus = AutoAttack(L2(0.5), "plus").members(10)
    assert [attack.label for attack in plus] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[number].restarts for number in range(3)] == [5, 5, 5]
    assert [plus[number].targets for number in (4, 5)] == [9, 9]
    sparse = AutoAttack(L1(10.0), "plus").members(10)
    assert [getattr(attack, "targets", None) for attack in sparse] == [0, 0, 0, None, 9, 9]
    for version in ("plus", "rand"):  # wider radii are the standard version's alone, in the authors' code
        made = AutoAttack(L1(10.0), version).members(10)
        assert not any(attack.widened for attack in made if isinstance(attack, APGD))
    drawn = AutoAttack(Linf(0.1), "rand").members(10)
    assert [(attack.label, attack.eot, attack.restarts) for attack in drawn] == [
        ("apgd-ce", 20, 1),
        ("apgd-dlr", 20, 1),
    ]


@pytest.mark.parametrize(
    ("classes", "labels", "targets"),
    [(2, ["apgd-ce", "fab-t", "square"], 1), (3, ["apgd-ce", "fab-t", "square"], 2), (5, None, 4)],
)
def test_few_classes_cut_it_and_it_says_so(classes: int, labels: list[str] | None, targets: int) -> None:
    attack = AutoAttack(Linf(0.1))
    members = attack.members(classes)
    assert [member.label for member in members] == (labels or ["apgd-ce", "apgd-t", "fab-t", "square"])
    assert {member.targets for member in members if getattr(member, "targets", 0)} == {targets}
    assert attack.cut(classes)
    assert not attack.cut(10)
    assert not attack.cut(1000)


def test_another_attack_never_raises_the_accuracy_and_each_sees_only_what_stands() -> None:
    images, labels = images_of(40)
    network = ManyClasses()
    eps = float(network.radius(images, labels, "linf").sort().values[28:30].mean())
    ball = Linf(eps)
    attacks = FGSM(ball), PGD(ball, 3, eps / 2), APGD(ball, 20, targets=5)
    standing = []
    for count in range(1, 4):
        points = AutoAttack(ball, "custom", attacks[:count])(network, images, labels, KEY)
        standing.append(correct(network(points), labels).bool())
    for fewer, more in pairwise(standing):
        assert not bool((more & ~fewer).any())
    assert int(standing[0].sum()) > int(standing[2].sum())
    network.seen = 0
    right = int(correct(network(images), labels).sum())
    network.seen = 0
    AutoAttack(ball, "custom", attacks[:2])(network, images, labels, KEY)
    assert network.seen == 40 + right * (1 + 1) + int(standing[0].sum()) * (3 + 1)


def test_images_wrong_from_the_start_are_given_back_as_they_are() -> None:
    images, labels = images_of(20)
    network = ManyClasses()
    points = AutoAttack(Linf(0.01), "custom", (FGSM(Linf(0.01)),))(network, images, labels, KEY)
    wrong = correct(network(images), labels) == 0
    assert int(wrong.sum()) == 2
    assert torch.equal(points[wrong], images[wrong])


def test_attacks_are_named_with_the_version_custom_and_only_then() -> None:
    with pytest.raises(ValueError, match="name attacks with version=custom and only then"):
        AutoAttack(Linf(0.1), "custom")
    with pytest.raises(ValueError, match="version=standard with 1 attacks"):
        AutoAttack(Linf(0.1), attacks=(FGSM(Linf(0.1)),))
    with pytest.raises(ValueError, match="raises no goal"):
        AutoAttack(Linf(0.1))(ManyClasses(), *images_of(2), KEY, lambda logits, targets: logits[:, 0])
