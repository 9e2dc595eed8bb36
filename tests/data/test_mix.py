"""Mixup and CutMix within groups of positions: Zhang et al. 2018, Yun et al. 2019."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from robust_train.data.mix import Mix, Mixup
from robust_train.keyed import Key
from robust_train.nouns import Batch

CLASSES = 5


def batch(size=24, side=12, dtype=torch.float64) -> Batch:
    """Image b is constant b / size, so a mixture says what it is made of."""
    images = (torch.arange(size, dtype=dtype) / size).view(-1, 1, 1, 1).expand(size, 3, side, side).contiguous()
    ids = torch.arange(size)
    return Batch(images, ids % CLASSES, ids, ids)


def test_a_mix_is_convex_and_one_number_a_group():
    mix = Mix.draw(Key(0).of("mix"), 1.0, 6, 24)
    assert (mix.lam.view(4, 6) == mix.lam.view(4, 6)[:, :1]).all()
    assert len(mix.lam.unique()) == 4
    assert (mix.partner.view(4, 6).sort(1).values == torch.arange(24).view(4, 6)).all()
    a = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    by_hand = torch.stack([mix.lam[b].float() * a[b] + (1 - mix.lam[b]).float() * a[mix.partner[b]] for b in range(24)])
    torch.testing.assert_close(mix(a), by_hand)
    assert mix(a).dtype == torch.float32


def test_the_mixing_weight_is_beta_distributed():
    for alpha in (0.2, 1.0):
        lam = Mix.draw(Key(1), alpha, 1, 3000).lam.numpy()
        assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_without_alpha_nothing_is_mixed():
    mix, images = Mix.draw(Key(0), 0.0, 8, 24), torch.rand(24, 3)
    assert torch.equal(mix(images), images)


@pytest.mark.parametrize("mixing", [Mixup(group=6), Mixup(alpha=0, cutmix=1, group=6), Mixup(cutmix=1, group=6)])
def test_parts_of_whole_groups_mix_as_the_whole_batch_does(mixing):
    whole = batch()
    key = Key(3).at(5)
    mixed = mixing(whole, key, CLASSES)
    for first in range(0, 24, 6):
        part = mixing(whole[first : first + 6], key.rows(torch.arange(first, first + 6)), CLASSES)
        assert torch.equal(part.images, mixed.images[first : first + 6])
        assert torch.equal(part.targets, mixed.targets[first : first + 6])
        assert torch.equal(part.position, mixed.position[first : first + 6])


def test_mixup_moves_targets_as_it_moves_images():
    """With constant images b / n and one-hot b: the image's value is the expectation of b / n under the target."""
    one = batch(5)
    mixed = Mixup(alpha=1, group=5)(one, Key(0), 5)
    expected = (mixed.targets @ torch.arange(5).double()) / 5
    torch.testing.assert_close(mixed.images[:, 0, 0, 0], expected)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(5).double())


def test_cutmix_takes_each_pixel_from_one_of_two_and_counts_them_in_the_target():
    one = batch(5)
    inside = 0.0
    for seed in range(30):
        mixed = Mixup(alpha=0, cutmix=1, group=5)(one, Key(seed), 5)
        own = one.images == mixed.images
        share = own[:, 0].double().mean((1, 2))
        value = mixed.images.mean((1, 2, 3))
        expected = (mixed.targets @ torch.arange(5).double()) / 5
        torch.testing.assert_close(value, expected)
        for b in range(5):
            assert len(mixed.images[b].unique()) <= 2
            box = torch.nonzero(~own[b, 0])
            if len(box):
                height, width = (box.max(0).values - box.min(0).values + 1).tolist()
                assert len(box) == height * width
                torch.testing.assert_close(mixed.targets[b, b], share[b])
        inside += float(1 - share.mean()) / 30
    assert 0.05 < inside < 0.45


def test_a_box_in_the_middle_has_the_area_that_lam_says():
    """Boxes that are not clipped: sides floor(L sqrt(1 - lam)), so at most the stated area, and nearly that."""
    mixing, images = Mixup(alpha=0, cutmix=1, group=1), torch.zeros(500, 1, 40, 40)
    key = Key(0)
    boxes, outside = mixing._boxes(key, images)
    from robust_train.keyed import beta

    lam = beta(key.of("cutmix").rows(torch.arange(500)), (500,), 1.0)
    rows, columns = boxes.any(3)[:, 0], boxes.any(2)[:, 0]
    clear = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & boxes.flatten(1).any(1)
    sides = (40 * (1 - lam).sqrt()).floor()
    assert clear.sum() > 50
    torch.testing.assert_close(1 - outside[clear], (sides / 40).square()[clear])
    assert (rows.sum(1)[clear] == sides[clear]).all()


def test_switch_is_the_share_of_groups_that_are_cut():
    images = torch.arange(2000.0).view(-1, 1, 1, 1).expand(2000, 1, 8, 8).contiguous()
    ids = torch.arange(2000)
    mixed = Mixup(alpha=1, cutmix=1, switch=0.25, group=2)(Batch(images, ids % 3, ids, ids), Key(0), 3)
    blended = (mixed.images != images) & (mixed.images != images.view(-1, 2, 1, 8, 8).flip(1).view_as(images))
    groups = blended.view(1000, -1).any(1)
    assert 0.5 < groups.float().mean() * 2 < 1.0  # half the groups pair an image with itself; 3/4 of the rest blend
    only = Mixup(alpha=0, cutmix=1, group=2)(Batch(images, ids % 3, ids, ids), Key(0), 3)
    assert set((only.images - images).abs().unique().tolist()) == {0.0, 1.0}


def test_smoothing_comes_before_mixing():
    one = batch(5)
    mixed = Mixup(alpha=1, smoothing=0.1, group=5)(one, Key(0), 5)
    assert torch.allclose(mixed.targets.min(1).values, torch.full((5,), 0.02).double())
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(5).double())


def test_half_groups_are_refused():
    with pytest.raises(ValueError, match="are not whole groups of 7"):
        Mixup(group=7)(batch(), Key(0), CLASSES)


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", -1.0), ("cutmix", -1.0), ("switch", 2.0), ("smoothing", -0.1), ("group", 0)]
)
def test_mixings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        Mixup(**{field: value})
