"""The L0 threat model: few pixels, any colour."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.threats.pixels import L0


def test_the_projection_is_the_nearest_point_of_all_choices_of_pixels() -> None:
    """Against every choice of 2 of 6 places; moves beyond the box gain only as far as the box goes."""
    torch.manual_seed(0)
    images, z = torch.rand(20, 3, 2, 3).double(), 1.5 * torch.randn(20, 3, 2, 3).double()
    found = L0(2)
    nearest = torch.full((20,), torch.inf, dtype=torch.float64)
    for chosen in combinations(range(6), 2):
        mask = torch.zeros(6, dtype=torch.bool)
        mask[list(chosen)] = True
        kept = ((images + z).clamp(0, 1) - images) * mask.view(1, 1, 2, 3)
        nearest = torch.minimum(nearest, (z - kept).flatten(1).norm(dim=1))
    assert_close((z - found.project(images, z)).flatten(1).norm(dim=1), nearest, rtol=0, atol=1e-12)


def test_a_pixel_is_all_channels_of_one_place() -> None:
    images = torch.full((1, 3, 4, 4), 0.5)
    moved = images.clone()
    moved[0, :, 1, 2] = 0.7
    moved[0, 0, 3, 3] = 0.0
    assert L0(5).distance(images, moved).tolist() == [2]


def test_the_start_changes_exactly_eps_pixels_and_more_than_there_are_means_all() -> None:
    images = torch.rand(6, 3, 4, 4)
    for eps, changed in ((0, 0), (5, 5), (99, 16)):
        ball = L0(eps)
        assert ball.distance(images, ball.apply(images, ball.start(images, Key(1)))).tolist() == [changed] * 6


def test_its_steepest_direction_is_the_sign_of_the_pixel_with_the_largest_slope() -> None:
    slope = torch.tensor([[1.0, -3.0, 2.0], [2.0, 0.5, -2.5]]).view(1, 2, 1, 3)
    assert L0(1).unit(slope).view(2, 3).tolist() == [[0, 0, 1], [0, 0, -1]]


def test_parts_of_a_pixel_are_refused() -> None:
    with pytest.raises(ValueError, match="counts the pixels"):
        L0(0.5)
    with pytest.raises(ValueError, match="must not be negative"):
        L0(-1)
