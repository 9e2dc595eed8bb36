"""Hendrycks and Dietterich 2019 (arXiv 1903.12261): what verdicts under corruptions come to."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch import nn

from robust_train.data.corruptions import BENCHMARK, CATEGORIES, NAMES, SEVERITIES, VALIDATION, corrupt
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.corruptions import ALEXNET, ALEXNET_CLEAN, Robustness, corrupted, efficiency
from robust_train.keyed import Key
from robust_train.nouns import Batch

MANY = 10**6  # images: enough that an accuracy given to six digits is a whole number of them


def accurate(accuracies: dict[str, float], clean: float | None = None, size: int | None = 224) -> Robustness:
    """As accurate at every severity."""
    counts = {(name, s): (round(MANY * value), MANY) for name, value in accuracies.items() for s in SEVERITIES}
    return Robustness(counts, None if clean is None else (round(MANY * clean), MANY), size)


def everywhere(accuracy: float, **others: float) -> dict[str, float]:
    return dict.fromkeys(BENCHMARK, accuracy) | others


# -- means and ratios -------------------------------------------------------------------------------


def test_half_of_gaussian_noise_wrong_is_a_ce_of_56_4():
    assert accurate({"gaussian_noise": 0.5}).ce("gaussian_noise") == pytest.approx(0.56406, abs=5e-6)


def test_alexnet_itself_has_an_mce_of_100():
    itself = accurate({name: 1 - error for name, error in ALEXNET.items()}, clean=1 - ALEXNET_CLEAN)
    assert itself.mce == pytest.approx(1, abs=1e-6)
    assert itself.relative_mce == pytest.approx(1, abs=1e-5)
    assert fmean(ALEXNET.values()) == pytest.approx(0.788993, abs=1e-6)


def test_mce_is_the_mean_of_ratios():
    """With 60 % wrong throughout: 0.77607; the ratio of the means would be 0.6 / 0.788993 = 0.7605."""
    assert accurate(everywhere(0.4)).mce == pytest.approx(0.77607, abs=5e-6)


def test_the_relative_ce_counts_the_errors_beyond_the_clean_ones():
    """(0.5 - 0.24) / (0.886428 - 0.4348) = 57.57 %."""
    judged = accurate({"gaussian_noise": 0.5}, clean=0.76)
    assert judged.relative_ce("gaussian_noise") == pytest.approx(0.5757, abs=5e-5)
    assert accurate({"gaussian_noise": 0.5}).relative_ce("gaussian_noise") is None  # clean images were not judged


@pytest.mark.parametrize("size", [64, 32, None])
def test_alexnets_figures_say_nothing_of_other_sizes(size):
    judged = accurate(everywhere(0.4), clean=0.7, size=size)
    assert (judged.mce, judged.relative_mce, judged.ce("fog")) == (None, None, None)
    assert judged.mean == pytest.approx(0.4)


def test_accuracies_are_averaged_over_severities_corruptions_and_categories():
    """A(c, s) = (position of c + s) / 100: every mean is that of the positions, plus 3."""
    counts = {(name, s): (i + s, 100) for i, name in enumerate(BENCHMARK) for s in SEVERITIES}
    judged = Robustness(counts)
    assert judged.accuracy("shot_noise") == pytest.approx(0.01 + 0.03)
    assert judged.category("noise") == pytest.approx(0.01 + 0.03)  # 0, 1, 2
    assert judged.category("blur") == pytest.approx(0.045 + 0.03)  # 3 to 6
    assert judged.mean == pytest.approx(0.07 + 0.03)
    assert judged.mean_of_categories == pytest.approx((0.01 + 0.045 + 0.085 + 0.125) / 4 + 0.03)
    assert judged.severity(2) == pytest.approx(0.07 + 0.02)
    assert judged.figures["fog", 4].accuracy == (9 + 4) / 100


def test_a_mean_that_lacks_a_part_is_absent():
    whole = accurate(everywhere(0.5), clean=0.9)
    counts = {cell: value for cell, value in whole.counts.items() if cell != ("fog", 3)}
    judged = replace(whole, counts=counts)
    assert judged.accuracy("fog") is None
    assert (judged.mean, judged.mce, judged.category("weather"), judged.severity(3)) == (None, None, None, None)
    assert judged.category("blur") == judged.severity(2) == 0.5
    assert Robustness({}).mean is None


def test_the_corruptions_for_validation_are_in_no_mean():
    judged = accurate(everywhere(0.5, **dict.fromkeys(VALIDATION, 0.1)), clean=0.9)
    assert judged.mean == judged.severity(1) == 0.5
    assert judged.accuracy("spatter") == pytest.approx(0.1)
    assert judged.ce("spatter") is None
    assert judged.mce == accurate(everywhere(0.5)).mce


def test_gains_are_relative_and_averaged_both_ways():
    """Noise from 0.1 to 0.2 doubles, all else stays at 0.6: gains of 1 in 3 of 15; the mean grows by 0.02 of 0.5."""
    base = everywhere(0.6) | dict.fromkeys(CATEGORIES["noise"], 0.1)
    gain = accurate(base | dict.fromkeys(CATEGORIES["noise"], 0.2)).gain(accurate(base))
    assert gain.corruptions["shot_noise"] == pytest.approx(1)
    assert gain.categories == pytest.approx({"noise": 1, "blur": 0, "weather": 0, "digital": 0})
    assert gain.mean_of_gains == pytest.approx(3 / 15)
    assert gain.gain_of_means == pytest.approx(0.02 / 0.5)
    assert accurate(base).gain(Robustness({})).gain_of_means is None
    assert accurate({"fog": 0.1}).gain(accurate({"fog": 0.0})).corruptions["fog"] is None  # of nothing, no share


def test_a_student_keeps_a_share_of_what_the_ensemble_gains():
    assert efficiency(0.55, 0.5, 0.6) == pytest.approx(0.5)
    assert efficiency(0.45, 0.5, 0.6) == pytest.approx(-0.5)
    assert efficiency(0.55, 0.5, 0.5) is None
    assert efficiency(0.55, None, 0.6) is None


def test_all_of_it_can_be_written_down():
    tree = accurate(everywhere(0.4), clean=0.7).tree()
    assert json.loads(json.dumps(tree)) == tree
    assert len(tree["cells"]) == 75
    assert tree["cells"][0] == {"corruption": "gaussian_noise", "severity": 1, "right": 400_000, "images": MANY} | {
        "accuracy": 0.4,
        "interval95": tree["cells"][0]["interval95"],
    }
    assert tree["mce"] == pytest.approx(0.77607, abs=5e-6)
    assert accurate({"fog": 0.5}).tree()["mean"] is None


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'frog' at severity 1 is no corruption"):
        Robustness({("frog", 1): (1, 2)})
    with pytest.raises(ValueError, match="fog at severity 1: 3 right of 2 images"):
        Robustness({("fog", 1): (3, 2)})


# -- verdicts ---------------------------------------------------------------------------------------


class Bright(nn.Module):
    """Class 1 where the mean pixel is above 1/2; remembers what it saw and how."""

    classes = 2

    def forward(self, images):
        self.seen, self.was_training = images, self.training
        light = images.flatten(1).mean(1) - 0.5
        return torch.stack([-light, light], 1)


def batch(levels: list[int], targets: list[int]) -> Batch:
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    rows = torch.arange(len(levels))
    return Batch(images, torch.tensor(targets), rows, rows + 100)


def right(network: nn.Module, chunk: Batch, name: str, severity: int, key: Key) -> torch.Tensor:
    """[B] bool: verdicts on a corrupted chunk."""
    return verdicts(network, corrupted(chunk, name, severity, key), None, key)[0].bool()


def test_brightness_lifts_dark_images_over_the_threshold():
    """At 32 pixels and severity 5 by 0.3: 40 stays below 1/2, 60 to 120 come above, 200 was above."""
    network = Bright().train()
    dark = batch([40, 60, 120, 200], [0, 0, 0, 1])
    assert right(network, dark, "brightness", 1, Key(0)).tolist() == [True, True, False, True]
    assert right(network, dark, "brightness", 5, Key(0)).tolist() == [True, False, False, True]
    assert not network.was_training
    assert network.training


def test_levels_and_pixels_in_the_unit_interval_are_judged_alike():
    network, raw = Bright(), batch(list(range(0, 255, 25)), [0] * 11)
    for name in ("gaussian_noise", "fog"):
        levels = corrupted(raw, name, 3, Key(1)).images
        assert torch.equal(corrupted(raw.to("cpu"), name, 3, Key(1)).images, levels)
        assert torch.equal(corrupted(raw.to("cpu", torch.float64), name, 3, Key(1)).images.float(), levels)
        right(network, raw, name, 3, Key(1))
        assert torch.equal(network.seen, levels)
        expected = corrupt(raw.images, name, 3, Key(1).of("corruptions").rows(raw.sample)).float() / 255
        assert torch.equal(levels, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "frost"])
def test_a_verdict_does_not_depend_on_the_chunk(name):
    whole = batch([100, 120, 127, 128, 130, 160], [0, 1, 0, 1, 0, 1])
    together = right(Bright(), whole, name, 3, Key(2))
    apart = [right(Bright(), whole[rows], name, 3, Key(2)) for rows in torch.tensor([4, 1, 3, 0, 5, 2]).split(4)]
    assert torch.equal(torch.cat(apart), together[torch.tensor([4, 1, 3, 0, 5, 2])])
