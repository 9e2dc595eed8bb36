"""Accuracy under shift, of networks whose answers are known."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from robust_train.data.shifts import ImageNet, shifts
from robust_train.evaluate.report import wilson
from robust_train.evaluate.shifts import Shifts, preprocessing
from robust_train.evaluate.store import Store
from robust_train.evaluate.work import evaluate, work
from robust_train.keyed.noise import KeyedNoise
from robust_train.models.network import Network
from robust_train.read.errors import ConfigError
from tests.data.miniature import SYNSETS, A, Oracle, ranking, write_images, write_labels


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    return write_labels(tmp_path_factory.mktemp("labels"))


def one(name: str, folder: str, labels: str, **fields):
    (shift,) = shifts(name, folder, labels, size=4, **fields)
    return shift


def compare(network, wanted, imagenet=None, **portion):
    sets = Shifts(tuple(wanted), imagenet, **portion)
    return sets.report(evaluate(sets, {"": network}, sets.wanted[0])).result


def shifted(network, shift, **portion):
    return compare(network, [shift], **portion)[0].figure


def test_accuracy_is_right_over_judged_with_wilsons_interval(tmp_path, labels):
    """Greys 0 to 9 of class 1; the network says 1 to the first seven, and to all others something else."""
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/{level}.png": level for level in range(10)})
    network = Oracle([ranking(1)] * 7 + [ranking(4)] * 3)
    figure = shifted(network, one("imagenet-a", folder, labels), chunk=4)
    assert (figure.name, figure.right, figure.images, figure.eps) == ("imagenet-a", 7, 10, None)
    assert figure.interval == wilson(0.7, 10)


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


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="images=0 must be at least 1"):
        Shifts((), images=0)


def test_a_set_is_given_once(tmp_path, labels):
    shift = one("imagenet-a", str(tmp_path), labels)
    with pytest.raises(ValueError, match="imagenet-a is given twice"):
        Shifts((shift, shift))


class Coin(nn.Module):
    """Class 1 or 4 by one draw of noise for each image, whatever it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = KeyedNoise()

    def forward(self, images):
        drawn = self.noise(images[:, :1, :1, :1]).flatten()
        return torch.where(drawn[:, None] > 0, torch.tensor(ranking(1)), torch.tensor(ranking(4)))


def test_a_piece_is_a_function_of_the_set_alone_for_a_noisy_network_too(tmp_path, labels):
    """Two processes, other chunks, a second start: the same verdict on each image."""
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/{level:02}.png": level for level in range(40)})
    shift, networks = one("imagenet-a", folder, labels), {"": Network(Coin(), 12)}

    def verdicts(chunk, world=1):
        def deal(task, jobs):
            for rank in reversed(range(world)):
                yield from work(networks, None, task, jobs[rank::world], "cpu")

        return evaluate(Shifts((shift,), chunk=chunk), networks, shift, deal=deal)["imagenet-a"]["right"]

    whole = verdicts(40)
    assert 8 < int(whole.sum()) < 32  # a coin
    for chunk, world in ((1, 1), (7, 1), (7, 2), (6, 3)):
        assert torch.equal(verdicts(chunk, world), whole)


def test_what_was_judged_is_kept_set_by_set_and_not_judged_again(tmp_path, labels):
    """Of two sets one is broken off after its first chunk; another set beside them takes nothing away."""
    write_images(tmp_path / "a", {f"{SYNSETS[1]}/{level}.png": level for level in range(5)})
    write_images(tmp_path / "r", {f"{SYNSETS[5]}/{level}.png": level for level in range(5)})
    network, seen = Oracle([ranking(1)] * 3 + [ranking(7, 5)] * 2), []
    network.register_forward_hook(lambda module, images, out: seen.append(len(out)))

    class Killed(Exception):
        pass

    def start(names, pieces=99, **portion):
        sets = Shifts(tuple(one(f"imagenet-{name}", str(tmp_path / name), labels) for name in names), **portion)
        store, told = Store(tmp_path / "kept", {"": "w"}), []
        seen.clear()

        def tell(*said):
            told.append(said)
            if len(told) == pieces:
                raise Killed

        try:
            found = evaluate(sets, {"": network}, sets.wanted[0], store=store, tell=tell)
        except Killed:
            return store.resumed, store, None
        return store.resumed, store, sets.report(found).result

    there, kept, _ = start("a", 1, chunk=2)
    assert (there, seen, kept.share, kept.standing) == (0, [2], 2 / 5, "imagenet-a 100.0% of 2")
    there, _, (a, r) = start("ar", chunk=2)
    assert (there, seen) == (1, [2, 1, 2, 2, 1])
    assert (a.figure.right, r.figure.right) == (3, 2)
    there, kept, again = start("ra", chunk=2)
    assert (there, seen, kept.share, again) == (6, [], 1.0, (r, a))
    for other in ({"chunk": 3}, {"chunk": 2, "images": 4}):  # other pieces
        assert start("a", **other)[0] == 0
    (tmp_path / "a" / SYNSETS[1] / "9.png").write_bytes((tmp_path / "a" / SYNSETS[1] / "0.png").read_bytes())
    assert start("ar", 1, chunk=2)[0] == 3  # one image more: another set, and R as it was
    image = tmp_path / "r" / SYNSETS[5] / "0.png"
    before = image.stat()
    image.write_bytes(image.read_bytes())
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert start("r", 1, chunk=2)[0] == 0  # one that may be another, though it is as large


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
