"""Norm balls inside the pixel box: projections and steps in closed form.

[docs/methods/madry-pgd.md, docs/methods/generalized-at.md]
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from robust_train.kernels.l1_step import l1_project
from robust_train.keyed import Key
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_an_linf_step_stops_at_the_ball_and_at_the_box():
    images = row(0.5, 0.98)
    z = Linf(0.1).step(images, Linf(0.1).zero(images), row(3.0, 1e-9), 0.1)
    assert_close(images + z, row(0.6, 1.0))


def test_an_l2_step_too_long_ends_at_the_ball_in_its_own_direction():
    """From u = (3, 4) in a wide box to (0.6, 0.8) at eps 1."""
    images = row(0.0, 0.0)
    z = L2(1.0).step(images, images.clone(), row(3.0, 4.0), 5.0)
    assert_close(z, row(0.6, 0.8))


def test_an_l2_step_has_the_length_of_its_size_however_small_the_gradient():
    images = torch.full((3, 2), 0.5)
    gradient = torch.tensor([[3.0, 4.0], [3e-30, 4e-30], [0.0, 0.0]])  # float32 squares of the second are 0
    z = L2(1.0).step(images, torch.zeros_like(images), gradient, 0.1)
    assert_close(z, torch.tensor([[0.06, 0.08], [0.06, 0.08], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("images", "offset", "eps", "nearest"),
    [
        (row(0.5, 0.9, 0.2), row(0.6, 0.5, -0.4), 0.6, row(0.35, 0.10, -0.15)),  # t = 0.25
        (row(1.0, 0.0, 0.5, 0.5), row(0.5, 0.3, 0.3, -0.1), 0.4, row(0.0, 0.2, 0.2, 0.0)),  # t = 0.1
        (row(0.5, 0.95, 0.5), row(0.1, 0.1, -0.1), 1.0, row(0.1, 0.05, -0.1)),  # in the ball: the box alone
    ],
)
def test_the_projection_on_ball_and_box_is_the_nearest_point(images, offset, eps, nearest):
    """The card's numbers, checked there with a quadratic program; clipping a projection gives other ones."""
    assert_close(l1_project(images, offset, eps), nearest, rtol=0, atol=1e-12)
    assert_close(l1_project(images.float(), offset.float(), eps), nearest.float(), rtol=0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), eps=st.floats(0.01, 10.0))
def test_no_feasible_point_is_nearer_than_the_l1_projection(seed, size, eps):
    """For a convex set the projection p of u has <u - p, q - p> <= 0 at every feasible q; and it is non-expansive."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, size, generator=generator, dtype=torch.float64)
    images = draw[:1].expand(2, -1).contiguous()
    offset = 2 * torch.randn(2, size, generator=generator, dtype=torch.float64)
    nearest = l1_project(images, offset, eps)
    assert nearest.abs().sum(1).max() <= eps + 1e-9
    assert (images + nearest).min() >= -1e-12
    assert (images + nearest).max() <= 1 + 1e-12
    assert_close(l1_project(images, nearest, eps), nearest, rtol=0, atol=1e-9)
    for corner in (
        draw[1] * 2 - 1,
        draw[2] - images[0],
        (draw[3] > 0.5).double() - images[0],
        torch.zeros(size).double(),
    ):
        inside = corner.clamp(-images[0], 1 - images[0])
        inside = inside * min(1.0, eps / max(1e-12, float(inside.abs().sum())))
        assert (((offset - nearest) * (inside - nearest)).sum(1) <= 1e-8 * (1 + offset.abs().sum())).all()
    assert (nearest[0] - nearest[1]).norm() <= (offset[0] - offset[1]).norm() + 1e-9


def test_an_l1_step_moves_the_largest_gradients_and_divides_its_size_among_them():
    images = torch.full((1, 6), 0.5)
    gradient = torch.tensor([[5.0, -4.0, 3.0, -2.0, 1.0, 0.0]])
    z = L1(10.0, top=2).step(images, torch.zeros(1, 6), gradient, 0.5)
    assert_close(z, torch.tensor([[0.25, -0.25, 0.0, 0.0, 0.0, 0.0]]))
    assert_close(L1(10.0, top=1 / 3).step(images, torch.zeros(1, 6), gradient, 0.5), z)  # 1/3 of six pixels


def test_an_l1_step_passes_over_pixels_that_cannot_move():
    images = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    gradient = torch.tensor([[9.0, -8.0, 2.0, 1.0]])
    z = L1(10.0, top=1).step(images, torch.zeros(1, 4), gradient, 0.25)
    assert_close(z, torch.tensor([[0.0, 0.0, 0.25, 0.0]]))


def test_an_l1_step_moves_all_ties_and_no_pixel_without_gradient():
    images = torch.full((2, 4), 0.5)
    gradient = torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    z = L1(10.0, top=1).step(images, torch.zeros(2, 4), gradient, 0.3)
    assert_close(z, torch.tensor([[0.1, -0.1, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("threat", [L2(0.5), L1(0.5, top=2)], ids=lambda threat: threat.use)
def test_a_gradient_that_is_not_a_number_is_not_hidden(threat):
    images = torch.full((2, 4), 0.5)
    gradient = torch.tensor([[1.0, math.nan, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    z = threat.step(images, torch.zeros(2, 4), gradient, 0.1)
    assert z[0].isnan().any()
    assert z[1].isfinite().all()


def test_random_starts_fill_the_balls_evenly():
    """Uniform in a d-dimensional ball, (radius / eps)^d is uniform; the signs are even. Box out of reach."""
    images = torch.full((4000, 1, 1, 4), 0.5)
    key = Key(3)
    for threat, length in ((L2(0.4), lambda z: z.norm(dim=1)), (L1(0.4), lambda z: z.abs().sum(1))):
        z = threat.start(images, key).flatten(1)
        level = ((length(z) / 0.4) ** 4).sort().values
        assert (level - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.95 / 4000**0.5  # Kolmogorov, 0.1 %
        assert z.mean(0).abs().max() < 4 * z.std() / 4000**0.5
        assert (z > 0).float().mean().sub(0.5).abs() < 4 * 0.5 / 16000**0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: L2(-1.0), "eps=-1 must not be negative"),
        (lambda: L1(-0.5), "eps=-0.5 must not be negative"),
        (lambda: L1(1.0, top=0), "top=0 must be positive"),
        (lambda: Linf(8), "8 grey levels are eps=8/255"),
        (lambda: L1(math.nan), "must not be negative"),
    ],
)
def test_a_radius_that_cannot_be_is_refused_with_its_value(make, words):
    with pytest.raises(ValueError, match=words):
        make()
