"""Forward and backward passes of an attack, image by image, in closed form."""

from __future__ import annotations

import pytest
import torch

import robust_train
from robust_train.attacks.apgd import APGD
from robust_train.attacks.combine import Restarts
from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.evaluate.counted import watching
from robust_train.models.foreign import moded
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling

NET, DATA = Linear(), Middling(24)
EPS = Linf(1e-4)  # nothing falls, so that every image costs the whole attack


def spent(attack, module=NET, threats=None, **asked):
    report = robust_train.evaluate(
        module, DATA.images, DATA.targets, threats=threats, attack=attack, checks=0, batch=16, **asked
    )
    return report, next(iter(report.spent.values()))


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (PGD(EPS, 7, 1e-5), 7, 7),
        (PGD(EPS, 7, 1e-5, keep="best"), 8, 7),
        (PGD(EPS, 3, 1e-5, eot=4), 12, 12),
        (Restarts(PGD(EPS, 3, 1e-5), 2), None, 6),
        (APGD(EPS, 5), 1 + 6 + 1, 5),
        (Square(EPS, 9), 9 + 3, 0),
    ],
    ids=lambda one: getattr(one, "label", str(one)),
)
def test_an_attack_spends_what_its_docstring_says(attack, forwards, backwards):
    report, found = spent(attack)
    attacked = report.right["clean"] == 1
    assert 0 < int(attacked.sum()) < len(DATA.images), "those wrong when clean are not attacked"
    assert found["backwards"][attacked].unique().tolist() == [backwards]
    assert forwards is None or found["forwards"][attacked].unique().tolist() == [forwards]
    assert found["forwards"][~attacked].unique().tolist() == [-1]
    assert report.figures[-1].cost["backwards"] == backwards
    assert f"{backwards:.1f}" in str(report)


def test_each_row_counts_for_its_own_image_however_a_function_asks():
    """A function that asks about image i i + 1 times, in any order, some of it with a gradient."""

    def many(module, images, labels):
        rows = torch.cat([torch.full((i + 1,), i) for i in range(len(images))])
        rows = rows[torch.randperm(len(rows))]
        noisy = images[rows] + 0.001 * torch.rand_like(images[rows])
        for some in noisy.split(7):
            module(some)
        module(images[:2].requires_grad_()).sum().backward()
        return images.detach()

    for module in (NET, lambda images: NET(images)):
        report, found = spent(many, module, threats={"linf": 0.1})
        attacked = report.right["clean"] == 1
        own = [counts[chosen] for counts, chosen in zip(found["forwards"].split(16), attacked.split(16), strict=True)]
        for counts in own:
            assert counts.tolist() == [i + 1 + (i < 2) for i in range(len(counts))]
        assert int(found["backwards"].clamp(min=0).sum()) == 4


def test_a_row_of_attacks_costs_their_sum_and_less_where_images_fall():
    report = robust_train.evaluate(
        NET, DATA.images, DATA.targets, threats={"linf": 0.1}, attack=["fgsm", {"use": "apgd", "steps": 4}], checks=0
    )
    one, two, both = (figure.cost for figure in report.figures[1:])
    assert one == {"forwards": 1, "backwards": 1}
    assert two["forwards"] < 1 + 5 + 1, "what fell is asked about no more"
    assert both["forwards"] == pytest.approx(one["forwards"] + two["forwards"])


def test_the_network_is_left_as_it_was():
    before = len(NET._forward_hooks)
    with pytest.raises(ZeroDivisionError), watching(moded(NET), DATA.images):
        raise ZeroDivisionError
    assert len(NET._forward_hooks) == before
