"""A report counts every image once and says how sure it is."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from robust_train.evaluate.report import Figure, Judged, judge, wilson
from robust_train.keyed import Key
from tests.evaluate.linear import Linear, Middling


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (3, 40), (200, 400), (9_999, 10_000)])
def test_intervals_are_wilsons(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert Figure("clean", right, images).interval == wilson(right / images, images)


def test_no_images_have_no_interval():
    with pytest.raises(ValueError, match="an interval needs images"):
        wilson(0.5, 0)


def test_the_table_of_classes_counts_images_right_ones_and_robust_ones():
    judged = Judged(
        sample=torch.arange(6),
        targets=torch.tensor([0, 0, 2, 2, 2, 0]),
        clean=torch.tensor([True, False, True, True, False, True]),
        robust=torch.tensor([True, False, False, True, False, False]),
    )
    assert judged.per_class(4) == [(3, 2, 1), (0, 0, 0), (3, 2, 1), (0, 0, 0)]


def test_clean_accuracy_of_a_linear_classifier_is_the_share_of_labels_that_agree_with_it():
    data, network = Middling(), Linear()
    judged = judge(network, data.validation_batches(None, 50), None, Key(0))
    agrees = (network.score(data.images) > 0).long() == data.targets
    assert torch.equal(judged.clean, agrees)
    assert torch.equal(judged.robust, agrees)
    assert judged.sample.tolist() == list(range(len(data.images)))


def test_images_that_stand_in_for_broken_ones_are_not_counted_twice():
    data = Middling(20, broken=(3, 17))
    told = []
    judged = judge(Linear(), data.validation_batches(None, 8), None, Key(0), seen=lambda *counts: told.append(counts))
    assert judged.sample.tolist() == [n for n in range(20) if n not in (3, 17)]
    assert [count for count, _, _ in told] == [7, 15, 18]
    assert told[-1] == (18, int(judged.clean.sum()), int(judged.robust.sum()))
