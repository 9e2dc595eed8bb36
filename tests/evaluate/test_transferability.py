"""Transfers between linear networks are known in advance: whole between equal ones, none between orthogonal ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.pgd import PGD
from robust_train.evaluate.store import Store
from robust_train.evaluate.transferability import (
    AMPLIFIED,
    AMPLIFIED_NOISE,
    FOUND,
    NOISE,
    Cell,
    Matrix,
    Transferability,
    Unbounded,
    alike,
)
from robust_train.evaluate.work import evaluate
from robust_train.nouns import Batch, Place
from robust_train.read.errors import ConfigError
from robust_train.threats.l2 import L2

SIDE, COUNT, EPS = 8, 400, 0.02
PIXELS = 3 * SIDE * SIDE
ONE_STEP = PGD(L2(EPS), steps=1, step_size=2 * EPS, start="zero")  # exact on a linear network


class Half(nn.Module):
    """Two classes by the signs of one half of the pixels: the worst change is of one size on all of them."""

    classes = 2

    def __init__(self, half: int, scale: float = 1.0) -> None:
        super().__init__()
        sign = torch.randint(2, (PIXELS,), generator=torch.Generator().manual_seed(half)).float() * 2 - 1
        sign[slice(0, PIXELS // 2) if half else slice(PIXELS // 2, None)] = 0
        self.weight = nn.Parameter(sign * scale)

    def forward(self, images: Tensor) -> Tensor:
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([torch.zeros_like(score), score], 1)

    @torch.no_grad()
    def radius(self, images: Tensor, targets: Tensor) -> Tensor:
        """[B]: the L2 distance of the boundary; negative where the network is wrong."""
        score = ((images.flatten(1) - 0.5) @ self.weight) / self.weight.norm()
        return (2 * targets - 1) * score


@dataclass
class Grey:
    """Images around 1/2; the labels are the first half's own but for every tenth."""

    level: float = 0.5
    classes: int = 2

    def __post_init__(self) -> None:
        noise = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
        self.images = (self.level + EPS * noise).clamp(0, 1)
        with torch.no_grad():
            self.targets = Half(0)(self.images).argmax(1) ^ (torch.arange(COUNT) % 10 == 0).long()

    def contents(self):
        return {"images": self.images, "targets": self.targets}

    def validation_size(self) -> int:
        return COUNT

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None):
        for rows in torch.arange(min(limit or COUNT, COUNT)).split(chunk)[place.rank :: place.world]:
            yield Batch(self.images[rows], self.targets[rows], rows, rows)


NETWORKS = {"one": Half(0), "same": Half(0, scale=3.0), "orthogonal": Half(1)}


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    return Transferability(ONE_STEP, amplify=0.1, chunk=150)(NETWORKS, Grey())


def cell(matrix: Matrix, kind: str, made_for: str, tried_on: str) -> Cell:
    return next(one for one in matrix.cells if (one.kind, one.made_for, one.tried_on) == (kind, made_for, tried_on))


def test_the_examples_are_the_images_within_eps_of_the_boundary(matrix):
    data = Grey()
    for name, clean, held in zip(matrix.names, matrix.clean, matrix.source, strict=True):
        radius = NETWORKS[name].radius(data.images, data.targets)
        assert clean.right == int((radius > 0).sum())
        assert held.right == int((radius > EPS).sum())
        assert cell(matrix, FOUND, name, name).examples == int(((radius > 0) & (radius < EPS)).sum()) > 50


def test_what_fools_a_network_fools_an_equal_one_and_leaves_an_orthogonal_one_as_it_was(matrix):
    data = Grey()
    for made_for, tried_on in (("one", "same"), ("same", "one"), ("one", "one")):
        assert cell(matrix, FOUND, made_for, tried_on).error == 1
        assert cell(matrix, FOUND, made_for, tried_on).transfer == 1
    for made_for, tried_on in (("one", "orthogonal"), ("orthogonal", "one")):
        found = cell(matrix, FOUND, made_for, tried_on)
        own, other = (NETWORKS[name].radius(data.images, data.targets) for name in (made_for, tried_on))
        fooled = (own > 0) & (own < EPS)
        assert found.transfer == found.fooled == 0
        assert found.wrong == int((fooled & (other < 0)).sum()) > 0
        assert found.both == int((fooled & (other > 0)).sum()) > 0
        assert found.accuracy == pytest.approx(found.both / found.examples)


def test_noise_as_large_as_the_examples_fools_as_often_as_its_share_along_the_weights_says(matrix):
    """Noise of RMS s moves an image by s N(0, 1) along any direction: wrong with probability Phi(-radius / s)."""
    data, size = Grey(), EPS / math.sqrt(PIXELS)
    radius = NETWORKS["one"].radius(data.images, data.targets)
    near = radius[(radius > 0) & (radius < EPS)].double()
    for kind, rms in ((NOISE, size), (AMPLIFIED_NOISE, 0.1)):
        expected = torch.special.ndtr(-near / rms)
        luck = float((expected * (1 - expected)).sum().sqrt()) / len(near)
        found = cell(matrix, kind, "one", "same")
        assert found.error == pytest.approx(float(expected.mean()), abs=4 * luck)
    assert cell(matrix, NOISE, "one", "one").error < 0.15


def test_sizes_are_root_mean_squares_over_all_pixels(matrix):
    for name in matrix.names:
        for kind in (FOUND, NOISE):
            assert matrix.size(kind, name).asked == pytest.approx(EPS / math.sqrt(PIXELS), rel=1e-3)
            assert matrix.size(kind, name).clipped == pytest.approx(EPS / math.sqrt(PIXELS), rel=1e-3)
        assert matrix.size(AMPLIFIED, name).asked == 0.1
        assert matrix.size(AMPLIFIED, name).clipped == pytest.approx(0.1, rel=1e-4)
    assert cell(matrix, AMPLIFIED, "one", "same").error == 1
    assert cell(matrix, AMPLIFIED, "one", "orthogonal").transfer == 0


def test_clipping_takes_half_the_square_of_noise_on_white_images():
    """On white all that would be brighter is lost: RMS after clipping = 0.1 / sqrt 2."""
    data = Grey()
    with torch.no_grad():
        data.images = torch.ones_like(data.images) - 1e-3 * (1 - data.images)
        networks = {name: Shifted(network, data.images) for name, network in NETWORKS.items()}
    made = Transferability(PGD(L2(0.2), 1, 0.4, start="zero"), amplify=0.1)(networks, data)
    size = made.size(AMPLIFIED_NOISE, "one")
    assert size.asked == 0.1
    assert size.clipped == pytest.approx(0.1 / math.sqrt(2), rel=0.03)


class Shifted(nn.Module):
    """The network around the mean of some images in the place of grey."""

    classes = 2

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network, self.mean = network, images.mean(0)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(0.5 + images - self.mean)


def test_nearest_points_are_taken_as_far_as_they_are():
    """DeepFool crosses a linear boundary by 2 % of its distance: every right image is an example, in no ball."""
    attack = Unbounded(DeepFool(L2(1e-6), steps=5))
    data = Grey()
    made = Transferability(attack)({name: NETWORKS[name] for name in ("one", "orthogonal")}, data)
    radius = NETWORKS["one"].radius(data.images, data.targets)
    right = radius[radius > 0]
    assert made.kinds == (FOUND, NOISE)
    assert cell(made, FOUND, "one", "one").examples == len(right)
    assert cell(made, FOUND, "one", "orthogonal").transfer == 0
    expected = 1.02 * float(right.mean()) / math.sqrt(PIXELS)
    assert made.size(FOUND, "one").clipped == pytest.approx(expected, rel=0.01)


def test_chunks_change_nothing(matrix):
    again = Transferability(ONE_STEP, amplify=0.1, chunk=37)(NETWORKS, Grey())
    assert again.cells == matrix.cells


def test_what_is_kept_is_not_made_again(tmp_path, matrix, monkeypatch):
    tried = Transferability(ONE_STEP, amplify=0.1, chunk=150)

    made: list[str] = []
    attack = PGD.__call__

    def counted(self, network, images, targets, key, goal=None):
        made.append("")
        return attack(self, network, images, targets, key, goal)

    monkeypatch.setattr(PGD, "__call__", counted)  # the attack itself is what it was: a class that counts is another
    prints = {name: name for name in NETWORKS}

    def found() -> Matrix:
        return tried.report(evaluate(tried, NETWORKS, Grey(), store=Store(tmp_path, prints))).result

    first = found()
    assert len(made) == 9, "three chunks of three networks"
    assert first.cells == matrix.cells
    next(tmp_path.rglob("*-00001.pieces")).unlink()
    assert found() == first
    assert len(made) == 12


def test_a_network_that_nothing_fools_has_no_rates():
    still = Transferability(PGD(L2(0.0), 1, 0.0, start="zero"))({"a": Half(0), "b": Half(1)}, Grey())
    found = cell(still, FOUND, "a", "b")
    assert found.examples == 0
    assert math.isnan(found.error)
    assert found.tree()["error"] is None
    assert found.tree()["transfer"] is None


def test_networks_of_other_images_are_refused():
    same = (10, (3, 32, 32))
    alike({"a": same, "b": same})
    with pytest.raises(ConfigError, match="a and b cannot be tried on the same images: classes 10 and 100, images"):
        alike({"a": same, "b": (100, (3, 64, 64))})
    with pytest.raises(ConfigError, match="images 3x32x32 and 3x64x64"):
        alike({"a": same, "b": (10, (3, 64, 64))})
    with pytest.raises(ConfigError, match="two networks at least"):
        Transferability(ONE_STEP)({"a": Half(0)}, Grey())


@pytest.mark.parametrize("wrong", [{"amplify": 0.0}, {"amplify": 25.0}, {"chunk": 0}, {"images": 0}])
def test_numbers_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Transferability(ONE_STEP, **wrong)
