"""Attacks towards classes that the caller names, on a network whose nearest points are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robust_train
from robust_train.attacks.apgd import APGD
from robust_train.attacks.fab import FAB
from robust_train.attacks.pgd import PGD
from robust_train.keyed import Key
from robust_train.nouns import Attack
from robust_train.read.parse import parse, tree_of
from robust_train.threats.linf import Linf

EPS, CLASSES, COUNT = 0.2, 5, 10


class Bars(nn.Module):
    """Class c is told by pixel c alone: z_c = x_c. From label y only pixel c rising and pixel y falling lead to c."""

    classes = CLASSES

    def forward(self, images):
        return 4 * images.flatten(1)


NET = Bars()
LABELS = torch.arange(COUNT) % CLASSES
IMAGES = (0.4 + 0.3 * nn.functional.one_hot(LABELS, CLASSES).float()).view(COUNT, 1, 1, CLASSES)
EACH = tuple(int(label) for label in (LABELS + torch.tensor([1, 2] * 5)) % CLASSES)
KINDS = [
    lambda towards: PGD(Linf(EPS), 10, EPS / 4, "zero", towards=towards),
    lambda towards: PGD(Linf(EPS), 10, EPS / 4, keep="best", towards=towards),
    lambda towards: APGD(Linf(EPS), 10, towards=towards),
    lambda towards: APGD(Linf(EPS), 10, "dlr", towards=towards, restarts=2),
    lambda towards: FAB(Linf(EPS), 10, towards=towards),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=["pgd", "pgd-best", "apgd-ce", "apgd-dlr", "fab"])


@kinds
@pytest.mark.parametrize("towards", [3, EACH, torch.tensor(EACH)], ids=["one", "each", "tensor"])
def test_images_go_to_the_class_that_is_named_and_those_that_are_of_it_stay(kind, towards):
    attack = kind(towards)
    points = attack(NET, IMAGES, LABELS, Key(0))
    aims = torch.tensor(EACH) if not isinstance(towards, int) else torch.full((COUNT,), towards)
    same = aims == LABELS
    assert torch.equal(NET(points).argmax(1), aims)
    assert torch.equal(points[same], IMAGES[same])
    assert bool(same.any()) == isinstance(towards, int)
    assert float((points - IMAGES).abs().amax()) <= EPS * (1 + 1e-5)


@kinds
def test_an_images_class_is_its_rows_whoever_is_beside_it(kind):
    attack, rows = kind(EACH), torch.tensor([7, 2, 4])
    points = attack(NET, IMAGES[rows], LABELS[rows], Key(0).rows(rows))
    assert torch.equal(NET(points).argmax(1), torch.tensor(EACH)[rows])


def test_in_an_evaluation_it_is_the_place_in_the_data_set_in_any_chunk():
    found = []
    for batch in (3, 256):
        report = robust_train.evaluate(NET, IMAGES, LABELS, attack=KINDS[2](EACH), batch=batch, checks=0, points=True)
        assert report.robust_accuracy == 0
        found.append(NET(report.adversarial).argmax(1))
    assert torch.equal(*found)
    assert torch.equal(found[0], torch.tensor(EACH))
    one = robust_train.evaluate(
        NET, IMAGES, LABELS, threats={"linf": EPS}, attack={"use": "fab", "towards": 3}, checks=0, batch=4
    )
    assert one.robust_accuracy == 0.2, "the images of class 3 stand"


@kinds
def test_it_is_written_and_read_like_any_field(kind):
    for towards in (3, EACH):
        attack = kind(towards)
        assert parse(Attack, tree_of(attack)) == attack  # type: ignore[type-abstract]
    assert kind(torch.tensor(EACH)) == kind(EACH)


@kinds
@pytest.mark.parametrize(
    ("towards", "said"),
    [
        (-1, "towards=-1 is no class"),
        (1.0, "towards=1.0 is no class"),
        (True, "is no class"),
        ([1, "a"], "towards='a' is no class"),
        (torch.rand(COUNT), "is no class"),
        (5, "the network has 5 classes, 0 to 4"),
        (EACH[:4], "towards names 4 classes, and image 9 is attacked"),
    ],
)
def test_what_is_no_class_is_refused(kind, towards, said):
    with pytest.raises(ValueError, match=said):
        kind(towards)(NET, IMAGES, LABELS, Key(0))


def test_two_ways_to_say_where_to_are_refused():
    for made in (
        lambda: PGD(Linf(EPS), 1, 0.1, targets="random", towards=1),
        lambda: APGD(Linf(EPS), 1, targets=2, towards=1),
        lambda: FAB(Linf(EPS), 1, targets=2, towards=1),
    ):
        with pytest.raises(ValueError, match="leave one of them out"):
            made()
    with pytest.raises(ValueError, match="keep=best is one untargeted run"):
        APGD(Linf(EPS), 1, keep="best", towards=1)
