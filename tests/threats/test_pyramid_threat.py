"""Herrmann et al. 2022: the pyramid of patches. [docs/methods/pyramid-at.md]"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid


def grey(size: int = 4, value: float = 0.5) -> torch.Tensor:
    return torch.full((1, 1, size, size), value, dtype=torch.float64)


def test_levels_add_up_over_their_patches_and_each_is_clipped_at_eps():
    """S = [2, 1], m = [20, 1], eps = 0.01; 0.02 in a coarse patch counts as 0.01."""
    threat = Pyramid(0.01, (2, 1), (20.0, 1.0))
    coarse = torch.tensor([[[[0.01, -0.01], [0.0, 0.02]]]], dtype=torch.float64)
    moved = threat.apply(grey(), (coarse, torch.full((1, 1, 4, 4), -0.01, dtype=torch.float64)))
    blocks = torch.tensor([[0.69, 0.29], [0.49, 0.69]], dtype=torch.float64)
    assert_close(moved[0, 0], blocks.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize(("clips", "pixel"), [("each", 0.99), ("sum", 1.0)])
def test_clipping_each_level_is_not_clipping_the_sum(clips, pixel):
    threat = Pyramid(0.01, (2, 1), (20.0, 1.0), clips)
    z = (torch.full((1, 1, 1, 1), 0.01).double(), torch.full((1, 1, 2, 2), -0.01).double())
    assert_close(threat.apply(grey(2, 0.95), z), grey(2, pixel))


@pytest.mark.parametrize("clips", ["each", "sum"])
def test_the_gradient_of_a_patch_is_the_multiplied_sum_over_its_pixels(clips):
    """Only its sign is taken, so that patches whose sums are of one sign with one pixel's opposite show the sum."""
    threat = Pyramid(0.01, (2, 1), (20.0, 1.0), clips)
    w = torch.tensor([[3.0, -1.0], [-1.0, -0.5]]).double().view(1, 1, 2, 2)  # sums to 0.5
    coarse, fine = threat.step(grey(2), threat.zero(grey(2)), w, 0.004)
    assert_close(coarse, torch.full((1, 1, 1, 1), 0.004).double())
    assert_close(fine, 0.004 * w.sign())


def test_a_saturated_pixel_passes_no_gradient_to_its_patch():
    """Two of four pixels are lifted out of range by the coarse level: only the other two speak for the patch."""
    images = torch.tensor([[0.95, 0.95], [0.5, 0.5]]).double().view(1, 1, 2, 2)
    w = torch.tensor([[5.0, 5.0], [-1.0, -1.0]]).double().view(1, 1, 2, 2)
    z = (torch.full((1, 1, 1, 1), 0.005).double(), torch.zeros(1, 1, 2, 2).double())  # + 0.1
    coarse, fine = Pyramid(0.01, (2, 1), (20.0, 1.0), "each").step(images, z, w, 0.001)
    assert_close(coarse, torch.full((1, 1, 1, 1), 0.004).double())
    assert_close(fine, 0.001 * w.sign())  # its own clip, after the coarse one, is not saturated
    coarse, fine = Pyramid(0.01, (2, 1), (20.0, 1.0), "sum").step(images, z, w, 0.001)
    assert_close(coarse, torch.full((1, 1, 1, 1), 0.004).double())
    assert_close(fine, 0.001 * (w * (images < 0.9)).sign())


@pytest.mark.parametrize("clips", ["each", "sum"])
def test_a_pixel_at_the_boxs_face_passes_half_of_its_gradient(clips):
    """As min and max share a tie out: a patch with two such pixels, 3/2 and 3/2 against the two inside."""
    images = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double().view(1, 1, 2, 2)
    threat = Pyramid(0.01, (2,), (20.0,), clips)
    for inside, sign in ((-2.0, -1), (-1.4, 1), (-1.6, -1)):  # 2 inside + (3 + 3) / 2 decides, not 2 inside + 6
        w = torch.tensor([[3.0, 3.0], [inside, inside]]).double().view(1, 1, 2, 2)
        (coarse,) = threat.step(images, threat.zero(images), w, 0.004)
        assert_close(coarse, torch.full((1, 1, 1, 1), sign * 0.004).double())


@pytest.mark.parametrize("clips", ["each", "sum"])
def test_steps_are_those_of_the_authors_clip_restated(clips):
    """[derivative of min(max(u, 0), 1) written out: 1 inside, 1/2 at a face, 0 beyond] five steps, no number apart."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(3, 2, 8, 8, generator=generator, dtype=torch.float64) * 1.3 - 0.15).clamp(0, 1)
    threat = Pyramid(0.02, (4, 2, 1), (5.0, 2.0, 1.0), clips)
    z = theirs = threat.zero(images)
    for _ in range(5):
        gradient = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        z, theirs = threat.step(images, z, gradient, 0.008), restated(threat, images, theirs, gradient, 0.008)
        for mine, other in zip(z, theirs, strict=True):
            assert torch.equal(mine, other)


def restated(threat: Pyramid, images, z, gradient, size: float):
    """One step, backwards through the levels by hand."""
    points, reach = [images], threat.eps
    for patch, m, level in zip(threat.levels, threat.multipliers, z, strict=True):
        points.append(points[-1] + m * level.repeat_interleave(patch, 2).repeat_interleave(patch, 3))
        if threat.clips == "each":
            points.append(points[-1].clamp(0, 1))
    if threat.clips == "sum":
        points.append(points[-1].clamp(0, 1))
    moved = []
    for index in reversed(range(len(z))):
        if threat.clips == "each" or index == len(z) - 1:
            before = points[2 * index + 1] if threat.clips == "each" else points[-2]
            gradient = gradient * (((before > 0) & (before < 1)) + 0.5 * ((before == 0) | (before == 1)))
        patch = threat.levels[index]
        rows, columns = (side // patch for side in images.shape[-2:])
        summed = gradient.view(*images.shape[:2], rows, patch, columns, patch).sum((3, 5)) * threat.multipliers[index]
        moved.append((z[index] + size * summed.sign()).clamp(-reach, reach))
    return tuple(moved[::-1])


def test_one_step_of_the_published_setting_moves_every_pixel_by_31_steps():
    threat = Pyramid(3 / 255, (32, 16, 1), (20.0, 10.0, 1.0))
    images = grey(32)
    z = threat.step(images, threat.zero(images), -torch.ones_like(images), 1 / 255)
    assert_close(threat.apply(images, z), images - 31 / 255)


def test_a_pyramid_of_pixels_alone_is_the_linf_ball_without_its_box():
    """S = [1], M = [1] is sign-gradient ascent; the offsets are clipped to the ball, the image to the box."""
    images = 0.25 + torch.rand(2, 3, 4, 4, dtype=torch.float64) / 2
    pyramid, linf = Pyramid(0.1, (1,), (1.0,)), Linf(0.1)
    z, y = pyramid.zero(images), linf.zero(images)
    for _ in range(4):
        gradient = torch.randn_like(images)
        z, y = pyramid.step(images, z, gradient, 0.06), linf.step(images, y, gradient, 0.06)
        assert_close(pyramid.apply(images, z), linf.apply(images, y))


def test_a_random_start_is_constant_on_patches_and_even_in_the_ball():
    threat = Pyramid(0.01, (4, 1), (20.0, 0.0))
    images = torch.full((500, 2, 8, 8), 0.5)
    coarse, fine = threat.start(images, Key(0))
    assert coarse.shape == (500, 2, 2, 2)
    assert fine.shape == (500, 2, 8, 8)
    assert max(coarse.abs().max(), fine.abs().max()) <= 0.01
    assert abs(float(coarse.mean())) < 4 * 0.01 / (3 * 4000) ** 0.5
    moved = threat.apply(images, (coarse, fine)) - images
    assert_close(moved, (20 * coarse).repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_patches_that_do_not_tile_the_image_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"patches of 16 pixels do not tile images of 8 x 8; use some of 1, 2, 4, 8"):
        Pyramid(0.01, (16, 1), (10.0, 1.0)).zero(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="2 levels and 1 multipliers"):
        Pyramid(0.01, (2, 1), (1.0,))
    with pytest.raises(ValueError, match="6/255"):
        Pyramid(6)
