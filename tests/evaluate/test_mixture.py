"""Shares of an ensemble's members: the optimum of a convex loss, known by its conditions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from robust_train.evaluate.mixture import answered, fit_weights, loss_of, temperature
from robust_train.keyed import Key
from robust_train.keyed.noise import KeyedNoise
from robust_train.losses import cross_entropy
from robust_train.models.ensemble import Ensemble, Mean, mixed
from robust_train.models.network import Network
from robust_train.nouns import Batch
from robust_train.read.errors import DataError, NumericsError

MEANS: list[Mean] = ["logits", "probabilities"]


def drawn(members: int, images: int = 3000, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Members that know the label, the later the less; labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    known = 2 * nn.functional.one_hot(labels, classes) + torch.randn(images, classes, generator=generator)
    noises = [torch.randn(images, classes, generator=generator) * (1 + m / 3) for m in range(members)]
    return torch.stack([known + noise for noise in noises]), labels


def plain(logits: Tensor, labels: Tensor, weights: Tensor, mean: Mean) -> Tensor:
    """The loss by its definition, with a graph."""
    if mean == "logits":
        return cross_entropy(torch.einsum("m,mnc->nc", weights, logits.double()), labels).mean()
    mixture = torch.einsum("m,mnc->nc", weights, logits.double().softmax(-1))
    return -mixture[torch.arange(len(labels)), labels].log().mean()


@pytest.mark.parametrize("mean", MEANS)
def test_the_loss_is_the_cross_entropy_of_the_ensembles_own_answer(mean):
    logits, labels = drawn(3)
    for shares in ([1 / 3, 1 / 3, 1 / 3], [0.7, 0.3, 0.0]):
        weights = torch.tensor(shares, dtype=torch.float64)
        expected = float(cross_entropy(mixed(logits.double(), weights, mean), labels).mean())
        assert loss_of(logits, labels, weights, mean) == pytest.approx(expected, rel=1e-12)
        assert float(plain(logits, labels, weights, mean)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("members", [2, 4, 8])
@pytest.mark.parametrize("mean", MEANS)
def test_at_the_optimum_the_gradient_is_equal_on_the_support_and_nowhere_smaller(mean, members):
    """Karush, Kuhn and Tucker on the simplex; the loss is convex, so they suffice."""
    logits, labels = drawn(members)
    weights = fit_weights(logits, labels, mean)
    assert weights.dtype == torch.float64
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((weights >= 0).all())
    free = weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(plain(logits, labels, free, mean), free)
    level = float(weights @ gradient)
    assert_close(gradient[weights > 0], torch.full_like(gradient[weights > 0], level), atol=2e-5, rtol=0)
    assert float(gradient.min()) > level - 2e-5
    if members == 8 and mean == "probabilities":
        assert 0 < int((weights > 0).sum()) < 8


@pytest.mark.parametrize("mean", MEANS)
def test_no_other_shares_have_a_smaller_loss(mean):
    logits, labels = drawn(4, images=500)
    weights = fit_weights(logits, labels, mean)
    best = loss_of(logits, labels, weights, mean)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        other = -torch.rand(4, generator=generator, dtype=torch.float64).log()
        assert loss_of(logits, labels, other / other.sum(), mean) >= best - 1e-9
        assert loss_of(logits, labels, 0.99 * weights + 0.01 * other / other.sum(), mean) >= best - 1e-9


def test_the_shares_of_a_known_mixture_are_recovered():
    """Labels drawn from sum_m w_m p_m(y | x): the standard error of a share over 200,000 draws is some 0.003."""
    generator = torch.Generator().manual_seed(2)
    known = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    logits = 3 * torch.randn(3, 200_000, 4, generator=generator, dtype=torch.float64)
    mixture = torch.einsum("m,mnc->nc", known, logits.softmax(-1))
    labels = torch.multinomial(mixture, 1, generator=generator)[:, 0]
    assert_close(fit_weights(logits, labels, "probabilities"), known, atol=0.012, rtol=0)


def test_the_shares_of_a_known_mean_of_logits_are_recovered():
    generator = torch.Generator().manual_seed(3)
    known = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    logits = 2 * torch.randn(3, 100_000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.einsum("m,mnc->nc", known, logits).softmax(-1), 1, generator=generator)[:, 0]
    assert_close(fit_weights(logits, labels, "logits"), known, atol=0.012, rtol=0)


def test_two_members_each_right_on_its_own_share_of_images_get_these_shares():
    """p = (1 - e, e) on 70 of 100 images, (e, 1 - e) on the others: in the limit of small e the shares are 0.7, 0.3."""
    labels = torch.zeros(100, dtype=torch.int64)
    right = torch.arange(100) < 70
    logits = torch.stack([torch.where(one, 40.0, -40.0) for one in (right, ~right)])
    logits = torch.stack([logits, torch.zeros_like(logits)], -1)
    assert_close(fit_weights(logits, labels, "probabilities"), torch.tensor([0.7, 0.3]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mean", MEANS)
def test_members_that_are_all_alike_keep_equal_shares_and_any_shares_have_the_same_loss(mean):
    one, labels = drawn(1)
    logits = one.expand(4, -1, -1)
    assert_close(fit_weights(logits, labels, mean), torch.full((4,), 0.25, dtype=torch.float64), atol=1e-9, rtol=0)
    losses = [
        loss_of(logits, labels, torch.tensor(shares, dtype=torch.float64), mean)
        for shares in ([1.0, 0, 0, 0], [0.25] * 4, [0.1, 0.2, 0.3, 0.4])
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("mean", MEANS)
def test_a_member_that_is_wrong_throughout_has_no_share_and_one_alone_has_all(mean):
    logits, labels = drawn(2)
    wrong = -5.0 * nn.functional.one_hot(labels, 6)[None]
    weights = fit_weights(torch.cat([logits, wrong]), labels, mean)
    assert float(weights[2]) == 0
    assert_close(weights[:2], fit_weights(logits, labels, mean), atol=1e-4, rtol=0)
    assert fit_weights(logits[:1], labels, mean).tolist() == [1.0]


@pytest.mark.parametrize("mean", MEANS)
def test_the_order_of_members_and_images_says_nothing(mean):
    logits, labels = drawn(4)
    weights = fit_weights(logits, labels, mean)
    order = torch.tensor([2, 0, 3, 1])
    images = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert_close(fit_weights(logits[order][:, images], labels[images], mean), weights[order], atol=1e-4, rtol=0)


def test_labels_that_were_drawn_at_a_temperature_give_it_back():
    """Standard error over 20,000 draws: about 0.01 of T."""
    generator = torch.Generator().manual_seed(4)
    z = 2 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    for known in (0.5, 1.0, 3.0):
        labels = torch.multinomial((z / known).softmax(1), 1, generator=generator)[:, 0]
        assert temperature(z, labels) == pytest.approx(known, rel=0.06)
        assert temperature(10 * z, labels) == pytest.approx(10 * temperature(z, labels), rel=1e-6)


def test_the_temperature_of_two_classes_is_a_logarithm():
    """Logits (a, 0), right on a share s: softmax(a / T) = s, so T = a / log(s / (1 - s))."""
    labels = (torch.arange(100) >= 80).long()
    logits = torch.tensor([[5.0, 0.0]]).expand(100, 2)
    assert temperature(logits, labels) == pytest.approx(5 / math.log(0.8 / 0.2), rel=1e-9)


def test_a_temperature_without_an_optimum_is_the_end_of_the_range():
    """Always right: the sharper the better; worse than chance: the flatter the better."""
    logits = torch.tensor([[5.0, 0.0]]).expand(4, 2)
    assert temperature(logits, torch.zeros(4, dtype=torch.int64)) == 0.01
    assert temperature(logits, torch.ones(4, dtype=torch.int64)) == 100.0


class Speckled(nn.Module):
    """Pixels as logits, with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.scale = KeyedNoise(), nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        drawn = self.noise(images)
        return (self.scale * images + (0 if drawn is None else drawn)).flatten(1)


def test_answers_are_drawn_by_member_and_sample_whatever_the_chunks():
    ensemble = Ensemble([Network(Speckled(), 4), Network(Speckled(), 4)]).train()
    images, sample = torch.rand(6, 1, 2, 2), torch.tensor([4, 9, 2, 7, 1, 3])
    whole = Batch(images, torch.arange(6) % 4, torch.arange(6), sample)
    logits, labels = answered(ensemble, [whole], Key(5))
    assert logits.shape == (2, 6, 4)
    assert torch.equal(labels, whole.targets)
    assert not bool((logits[0] == logits[1]).any())
    for cuts in ([2, 4], [1, 5]):
        first, then = whole[: cuts[0]], whole[cuts[0] :]
        assert torch.equal(answered(ensemble, [first, then], Key(5))[0], logits)
    assert ensemble.training
    with torch.no_grad(), ensemble.noise(Key(5).rows(sample)):
        assert torch.equal(torch.stack([member(images) for member in ensemble.each]), logits)


def test_no_images_and_logits_that_are_not_finite_are_refused():
    ensemble = Ensemble([Network(Speckled(), 4), Network(Speckled(), 4)])
    with pytest.raises(DataError, match="no images to fit on"):
        answered(ensemble, [], Key(0))
    ensemble.each[1].model.scale.data.fill_(torch.inf)  # type: ignore[union-attr]
    batch = Batch(torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2), torch.arange(2))
    with pytest.raises(NumericsError, match="member 2 gives logits that are not finite"):
        answered(ensemble, [batch], Key(0))
