"""Accuracy under shift, of networks whose answers are known."""

from __future__ import annotations

import json

import pytest
from torch import nn

from robust_train.data.shifts import ImageNet, shifts
from robust_train.evaluate.report import wilson
from robust_train.evaluate.shifts import compare, preprocessing, shifted
from robust_train.models.network import Network
from robust_train.read.errors import ConfigError
from tests.data.miniature import SYNSETS, A, Oracle, ranking, write_images, write_labels


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    return write_labels(tmp_path_factory.mktemp("labels"))


def one(name: str, folder: str, labels: str, **fields):
    (shift,) = shifts(name, folder, labels, size=4, **fields)
    return shift


def test_accuracy_is_right_over_judged_with_wilsons_interval(tmp_path, labels):
    """Greys 0 to 9 of class 1; the network says 1 to the first seven, and to all others something else."""
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/{level}.png": level for level in range(10)})
    network = Oracle([ranking(1)] * 7 + [ranking(4)] * 3)
    told = []

    def watch(name):
        return lambda images, right: told.append((name, images, right))

    figure = shifted(network, one("imagenet-a", folder, labels), watch=watch, chunk=4)
    assert (figure.name, figure.right, figure.images, figure.eps) == ("imagenet-a", 7, 10, None)
    assert figure.interval == wilson(0.7, 10)
    assert told == [("imagenet-a", 4, 4), ("imagenet-a", 8, 7), ("imagenet-a", 10, 7)]


def test_clean_accuracy_beside_it_is_over_the_same_classes(tmp_path, labels):
    """Of ImageNet's twelve images three are of ImageNet-A's classes: two are right once others do not compete."""
    clean = write_images(tmp_path / "clean", {f"{synset}/x.png": label for label, synset in enumerate(SYNSETS)})
    hard = write_images(tmp_path / "hard", {f"{SYNSETS[label]}/x.png": label for label in A})
    network = Oracle([ranking(0, label) for label in range(7)] + [ranking(7)] * 5)
    network.rows[4] = network.rows[4].new_tensor(ranking(0, 1))
    imagenet = ImageNet(clean, labels, 4)
    a, sketch = compare(network, [one("imagenet-a", hard, labels), one("imagenet-sketch", hard, labels)], imagenet)
    assert (a.figure.right, a.figure.images, a.compared) == (2, 3, 3)
    assert (a.clean.name, a.clean.right, a.clean.images) == ("imagenet/200-a", 2, 3)
    assert a.gap == 0
    assert (sketch.figure.right, sketch.compared) == (1, 12)
    assert (sketch.clean.right, sketch.clean.images) == (2, 12)  # classes 0 and 7
    assert sketch.gap == pytest.approx(2 / 12 - 1 / 3)
    tree = json.loads(json.dumps(a.tree()))
    assert (tree["name"], tree["compared"], tree["gap"], tree["clean"]["images"]) == ("imagenet-a", 3, 0, 3)


def test_without_imagenet_there_is_no_gap(tmp_path, labels):
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/x.png": 0})
    (found,) = compare(Oracle([ranking(1)]), [one("imagenet-r", folder, labels)])
    assert (found.figure.accuracy, found.clean, found.gap) == (1, None, None)


def test_broken_images_are_not_judged(tmp_path, labels):
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/{level}.png": 0 for level in range(4)})
    (tmp_path / SYNSETS[1] / "2.png").write_bytes(b"no image")
    figure = shifted(Oracle([ranking(1)]), one("imagenet-a", folder, labels, missing=1), chunk=3)
    assert (figure.right, figure.images) == (3, 3)


def test_neither_chunk_nor_mode_decides_and_the_mode_is_given_back(tmp_path, labels):
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/{level}.png": level for level in range(5)})
    network = nn.Sequential(Oracle([ranking(1), ranking(2), ranking(1), ranking(4), ranking(1)]), nn.Dropout(0.9))
    network.train()
    figures = [shifted(network, one("imagenet-sketch", folder, labels), chunk=chunk) for chunk in (1, 2, 5)]
    assert [figure.right for figure in figures] == [3, 3, 3]
    assert network.training


def test_no_images_are_refused(tmp_path, labels):
    shift = one("imagenet-a", write_images(tmp_path, {f"{SYNSETS[1]}/x.png": 0}), labels)
    with pytest.raises(ConfigError, match="no images to judge"):
        shifted(Oracle([ranking(1)]), shift, images=0)


def test_a_timm_model_says_how_its_images_are_prepared():
    model = nn.Identity()
    assert preprocessing(model) == {}
    model.pretrained_cfg = {"crop_pct": 0.95, "interpolation": "bilinear", "crop_mode": "center", "mean": (0.5,)}
    said = {"crop": 0.95, "interpolation": "bilinear"}
    assert preprocessing(model) == said
    assert preprocessing(Network(model, 12)) == said
    model.pretrained_cfg |= {"crop_mode": "squash"}
    with pytest.raises(ConfigError, match="crop_mode='squash'"):
        preprocessing(model)
