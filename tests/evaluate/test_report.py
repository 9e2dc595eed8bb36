"""A report counts every image once and says how sure it is."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from robust_train.evaluate.report import Figure, wilson
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.trial import CLEAN
from robust_train.evaluate.verdicts import Verdicts
from robust_train.evaluate.work import evaluate
from robust_train.keyed import Key
from robust_train.threats.linf import Linf
from tests.evaluate.linear import Linear, Middling, judged

CLEAN_ALONE = {"threats": (Linf(0.0),), "steps": 1, "restarts": 1, "curve": 0, "checks": 0}


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 40), (3, 40), (200, 400), (9_999, 10_000)])
def test_intervals_are_wilsons(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert wilson(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert Figure("clean", right, images).interval == wilson(right / images, images)


def test_no_images_have_no_interval():
    with pytest.raises(ValueError, match="an interval needs images"):
        wilson(0.5, 0)


def test_the_table_of_classes_counts_images_and_the_right_ones_of_each_column():
    verdicts = Verdicts(torch.arange(6), torch.tensor([0, 0, 2, 2, 2, 0]), {}, {})
    clean = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    robust = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    table = verdicts.per_class([clean, robust], 4)
    assert table == ((3, 2, 1), (0, 0, 0), (3, 2, 0.5), (0, 0, 0))


def test_clean_accuracy_of_a_linear_classifier_is_the_share_of_labels_that_agree_with_it():
    data, network = Middling(), Linear()
    verdicts, _, _ = judged(Robustness(**CLEAN_ALONE, chunk=50), network, data)
    agrees = (network.score(data.images) > 0).long() == data.targets
    assert torch.equal(verdicts.columns[CLEAN].right.bool(), agrees)
    assert verdicts.sample.tolist() == list(range(len(data.images)))
    report = Robustness(**CLEAN_ALONE)(network, data, Key(0))
    assert (report.figures[0].name, report.figures[0].right) == ("clean", int(agrees.sum()))


def test_images_that_stand_in_for_broken_ones_are_not_counted():
    data = Middling(20, broken=(3, 17))
    evaluation = Robustness(**CLEAN_ALONE, chunk=8)
    found = evaluate(evaluation, {"": Linear()}, data)
    told = [len(chunk["right"]) for chunk in found.chunks(CLEAN)]
    report = evaluation.report(found)
    whole = [n for n in range(20) if n not in (3, 17)]
    agrees = (Linear().score(data.images) > 0).long() == data.targets
    assert told == [7, 8, 3]
    assert (report.images, report.figures[0].right) == (18, int(agrees[whole].sum()))
    assert sum(row[0] for row in report.classes) == 18
