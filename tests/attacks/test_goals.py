"""What an attack raises: a goal asked about some rows of the images that it was made for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.attacks.apgd import APGD
from robust_train.attacks.combine import Restarts, WorstOf
from robust_train.attacks.cr import CR
from robust_train.attacks.fgsm import NFGSM
from robust_train.attacks.momentum import MIFGSM
from robust_train.attacks.msd import MSD
from robust_train.attacks.onepixel import OnePixel
from robust_train.attacks.pgd import PGD
from robust_train.attacks.queries import NES
from robust_train.attacks.square import Square
from robust_train.keyed import Key
from robust_train.losses import cross_entropy, kl
from robust_train.models.network import Network
from robust_train.nouns import Attack, Goal, Raising, Score
from robust_train.objectives.trades import Apart
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pixels import L0

COUNT = 24
KEY = Key(3).rows(torch.arange(COUNT))


def network_of(rate: float = 0.0) -> Network:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Dropout(rate), nn.Linear(12, 4))
    return Network(layers, 4, group=COUNT).double().eval()


def pictures() -> Tensor:
    return torch.rand(COUNT, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def labelled(network: Network, images: Tensor) -> Tensor:
    """The network's own labels but for every fourth image, which is wrong when clean and so set aside at once."""
    with torch.no_grad():
        own = network(images).argmax(1)
    return torch.where(torch.arange(COUNT) % 4 == 1, (own + 1) % 4, own)


def softened() -> Raising:
    """RSLAD's: the distance from what a teacher says of each image."""
    said = torch.randn(COUNT, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return Raising(lambda logits, said: kl(logits / 2, said), said)


def of_one(goal: Goal, row: int) -> Goal:
    """The same goal, made for one of the images alone."""
    if isinstance(goal, Raising) and goal.against is not None:
        return Raising(goal.loss, goal.against[row : row + 1])
    return goal


ATTACKS: list[Attack] = [
    APGD(Linf(0.04), 6, keep="best"),
    APGD(Linf(0.04), 12, restarts=2, compact=3),
    CR(Linf(0.04), rounds=1, steps=30),
    PGD(Linf(0.04), 3, 0.02, keep="best"),
    Square(Linf(0.04), 30),
    NES(Linf(0.04), 4, 0.02, samples=6, compact=1),
    OnePixel(L0(2), 6, 4),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.use}-{getattr(attack, 'keep', '')}")
@pytest.mark.parametrize("goal", [Apart(), softened()], ids=["trades", "distill"])
def test_a_goal_is_asked_about_the_rows_that_are_left(attack: Attack, goal: Goal):
    """Each image as in a batch of its own, though others are set aside before and beside it."""
    network, images = network_of(), pictures()
    targets = labelled(network, images)
    together = attack(network, images, targets, KEY, goal)
    alone = [
        attack(network, images[row : row + 1], targets[row : row + 1], KEY[row : row + 1], of_one(goal, row))
        for row in range(COUNT)
    ]
    assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)
    other = attack(network, images, targets, KEY)
    assert not torch.allclose(together, other), "the goal is not the attack's own, so it should lead elsewhere"


@dataclass(frozen=True)
class Watched(Goal):
    """Cross-entropy, with what it was asked about."""

    made: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def of(self, network, images: Tensor, targets: Tensor, key: Key) -> Score:
        self.made.append((images, key.row))
        inner = Raising(cross_entropy).of(network, images, targets, key)

        def score(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            self.asked.append((points.detach(), rows))
            return inner(points, rows)

        return score


@pytest.mark.parametrize(
    "attack",
    [*ATTACKS, MIFGSM(Linf(0.04), 3, 0.02), MSD((Linf(0.04), L2(0.2)), 2, (0.02, 0.1)), NFGSM(Linf(0.04))],
    ids=repr,
)
def test_a_goal_is_made_once_a_call_for_all_images_and_asked_near_them(attack: Attack):
    network, images, goal = network_of(), pictures(), Watched()
    attack(network, images, labelled(network, images), KEY, goal)
    ((of, row),) = goal.made
    assert torch.equal(of, images)
    assert torch.equal(row, KEY.row)
    radius = max(threat.eps for threat in (getattr(attack, "threats", None) or (attack.threat,)))
    if attack.use in ("apgd", "cr", "pgd", "square", "msd"):
        for points, rows in goal.asked:
            assert (points - images[rows]).abs().flatten(1).amax(1).max() <= 2 * radius + 1e-9
    if attack.use in ("cr", "square", "nes", "one-pixel") or getattr(attack, "keep", "") == "fooled":
        asked = torch.cat([rows for _, rows in goal.asked]).unique()
        assert not (asked % 4 == 1).any(), "those that are wrong when clean were set aside before"


def test_attacks_made_of_attacks_say_how_often_they_make_a_goal():
    network, images = network_of(), pictures()
    inner = PGD(Linf(0.04), 1, 0.04)
    for attack in (Restarts(inner, 3), Restarts(inner, 1), WorstOf((inner, Restarts(inner, 2))), inner):
        goal = Watched()
        attack(network, images, labelled(network, images), KEY, goal)
        assert len(goal.made) == attack.goals()
    assert PGD(Linf(0.04), 0, 0.04).goals() == 0


def test_a_goal_is_made_under_the_masks_and_the_statistics_of_the_attack():
    """p is what the attack's own first forward says of the image: frozen masks of the attack's key."""
    network, images, seen = network_of(rate=0.5).train(), pictures(), []

    @dataclass(frozen=True)
    class Looking(Goal):
        def of(self, network, images: Tensor, targets: Tensor, key: Key) -> Score:
            seen.append(network(images).detach())
            assert not any(weight.requires_grad for weight in network.parameters())
            return Raising(cross_entropy).of(network, images, targets, key)

    targets = torch.zeros(COUNT, dtype=torch.int64)
    PGD(Linf(0.04), 2, 0.02, drops="frozen")(network, images, targets, KEY, Looking())
    PGD(Linf(0.04), 2, 0.02)(network, images, targets, KEY, Looking())
    with network.drops(KEY.of("drops")):
        masked = network(images)
    assert_close(seen[0], masked)
    assert_close(seen[1], network.eval()(images))
    assert not torch.allclose(seen[0], seen[1])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.use}-{getattr(attack, 'keep', '')}")
@pytest.mark.parametrize("shape", ["one", "column", "scalar", "whole"])
def test_a_score_of_the_wrong_shape_is_refused(attack: Attack, shape: str):
    """One number, or one for the whole batch, would be broadcast over the images that are left."""
    network, images = network_of(), pictures()
    wrong = {
        "one": lambda score: score[:1],
        "column": lambda score: score[:, None],
        "scalar": lambda score: score.sum(),
        "whole": lambda score: score.new_zeros(COUNT + 1) + score.sum(),
    }[shape]
    goal = Raising(lambda logits, targets: wrong(cross_entropy(logits, targets)))
    with pytest.raises(ValueError, match=re.escape("one number and one row of logits for each point")):
        attack(network, images, labelled(network, images), KEY, goal)
