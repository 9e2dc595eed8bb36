"""What every registered threat model keeps to."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.nouns import Threat
from robust_train.read.registry import threats
from tests.registered import examples

THREATS = list(examples(threats).values())
every = pytest.mark.parametrize("threat", THREATS, ids=repr)
KEY = Key(1).rows(torch.arange(6))


def some_images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Images inside the box and on its faces."""
    torch.manual_seed(0)
    return (torch.rand(6, 2, 8, 8, dtype=dtype) * 1.4 - 0.2).clamp(0, 1)


def each(z: object) -> tuple[torch.Tensor, ...]:
    return z if isinstance(z, tuple) else (z,)  # type: ignore[return-value]


def wander(threat: Threat, images: torch.Tensor, steps: int = 3, size: float = 0.3) -> object:
    """A point of the set after some steps along random gradients."""
    z = threat.start(images, KEY)
    for _ in range(steps):
        z = threat.step(images, z, torch.randn_like(images), size)
    return z


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_and_steps_stay_inside_ball_and_box(threat, dtype):
    images = some_images(dtype)
    for z in (threat.zero(images), threat.start(images, KEY), wander(threat, images)):
        adversarial = threat.apply(images, z)
        assert adversarial.dtype == dtype
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        assert threat.distance(images, adversarial).max() <= threat.eps + 1e-6


@every
def test_the_point_that_changes_nothing_is_at_distance_zero(threat):
    images = some_images()
    unmoved = threat.apply(images, threat.zero(images))
    assert torch.equal(unmoved, images)
    assert torch.equal(threat.distance(images, unmoved), torch.zeros(6).double())


@every
def test_a_radius_of_zero_allows_only_the_image(threat):
    from dataclasses import replace

    nothing, images = replace(threat, eps=0.0), some_images()
    for z in (nothing.start(images, KEY), wander(nothing, images)):
        assert torch.equal(nothing.apply(images, z), images)


@every
def test_a_step_of_size_zero_projects_and_projecting_twice_is_projecting_once(threat):
    images = some_images()
    outside = tuple(3 * torch.randn_like(level) for level in each(threat.zero(images)))
    still = torch.randn_like(images)
    once = threat.step(images, outside if isinstance(threat.zero(images), tuple) else outside[0], still, 0.0)
    assert threat.distance(images, threat.apply(images, once)).max() <= threat.eps + 1e-9
    twice = threat.step(images, once, still, 0.0)
    for first, second in zip(each(once), each(twice), strict=True):
        assert_close(first, second, rtol=0, atol=1e-9)


@every
def test_a_small_step_raises_a_loss_that_is_linear_in_the_image(threat):
    images = some_images()
    w = torch.randn_like(images)
    z = threat.zero(images)
    moved = threat.apply(images, threat.step(images, z, w, 1e-4))
    assert ((moved - images) * w).flatten(1).sum(1).min() > 0


@every
def test_every_row_is_treated_alone(threat):
    images, gradient = some_images(), torch.randn(6, 2, 8, 8).double()
    z = threat.start(images, KEY)
    moved = threat.apply(images, threat.step(images, z, gradient, 0.2))
    for rows in (slice(0, 2), slice(2, 6), torch.tensor([5, 0])):
        z = threat.start(images[rows], KEY[rows])
        alone = threat.apply(images[rows], threat.step(images[rows], z, gradient[rows], 0.2))
        assert_close(alone, moved[rows], rtol=0, atol=1e-15)


@every
def test_the_key_alone_decides_the_start(threat):
    images = some_images()
    first, again = threat.start(images, KEY), threat.start(images, KEY)
    other = threat.start(images, KEY.of("another"))
    for a, b, c in zip(each(first), each(again), each(other), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@every
def test_rows_are_chosen_image_by_image(threat):
    images = some_images()
    ours, theirs = wander(threat, images), threat.zero(images)
    keep = torch.tensor([True, False, True, True, False, False])
    for chosen, mine, other in zip(each(threat.weight(ours, keep, theirs)), each(ours), each(theirs), strict=True):
        assert torch.equal(chosen[keep], mine[keep])
        assert torch.equal(chosen[~keep], other[~keep])


@every
def test_no_images_are_a_batch_too(threat):
    images = some_images()[:0]
    z = threat.step(images, threat.start(images, KEY[:0]), images, 0.1)
    assert threat.apply(images, z).shape == images.shape
