"""Least steps onto a hyperplane inside the box. Croce and Hein 2020 (arXiv 1907.02044)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch.testing import assert_close

from robust_train.threats.hyperplane import dual_norm, onto_hyperplane

NORMS = ("linf", "l2", "l1")
every = pytest.mark.parametrize("norm", NORMS)
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def problems(count: int = 40, pixels: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, some of them at faces of the box, normals with zeros, and gaps of both signs within the box's reach."""
    generator = torch.Generator().manual_seed(3)
    points = (1.4 * torch.rand(count, pixels, generator=generator) - 0.2).clamp(0, 1).double()
    normals = torch.randn(count, pixels, generator=generator).double() ** 3
    normals[::3, 2] = 0
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).double()
    room = torch.where(normals * side[:, None] > 0, 1 - points, points)
    share = torch.rand(count, generator=generator).double()
    return points, normals, side * share * (normals.abs() * room).sum(1)


def least(norm: str, point: np.ndarray, normal: np.ndarray, gap: float) -> float:
    """The least norm by SciPy: linear programmes, or sequential quadratic programming for L2."""
    count = len(point)
    bounds = list(zip(-point, 1 - point, strict=True))
    if norm == "l2":
        rule = {"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal}
        start = normal * gap / (normal @ normal)
        found = minimize(
            lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=bounds, constraints=[rule], options={"ftol": 1e-15}
        )
        return float(found.fun) ** 0.5
    eye, one = np.eye(count), np.ones((count, 1))
    bars = one if norm == "linf" else eye  # one bound of all |d_i|, or one each; their sum is made small
    above = np.block([[eye, -bars], [-eye, -bars]])
    cost = np.r_[np.zeros(count), np.ones(bars.shape[1])]
    found = linprog(
        cost, above, np.zeros(2 * count), np.r_[normal, np.zeros(bars.shape[1])][None], [gap],
        bounds + [(0, None)] * bars.shape[1],
    )  # fmt: skip
    return float(found.fun)


@every
def test_the_step_is_scipys_of_the_least_norm(norm):
    points, normals, gaps = problems()
    steps = onto_hyperplane(norm, points, normals, gaps)
    assert_close((normals * steps).sum(1), gaps, rtol=1e-12, atol=1e-12)
    assert (points + steps).min() >= 0
    assert (points + steps).max() <= 1
    expected = [least(norm, *row) for row in zip(points.numpy(), normals.numpy(), gaps.numpy(), strict=True)]
    assert_close(steps.norm(p=ORDER[norm], dim=1), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("norm", "gap", "expected"),
    [
        ("linf", 0.5, (2 / 15, 2 / 15, 0.1)),
        ("linf", 1.1, (1 / 3, 1 / 3, 0.1)),
        ("l2", 0.5, (1 / 12, 1 / 6, 1 / 12)),
        ("l2", 1.1, (0.2, 0.4, 0.1)),
    ],
)
def test_steps_worked_by_hand(norm, gap, expected):
    points, normals = torch.tensor([[0.5, 0.5, 0.9]]).double(), torch.tensor([[1.0, 2.0, 1.0]]).double()
    steps = onto_hyperplane(norm, points, normals, torch.tensor([gap]).double())
    assert_close(steps[0], torch.tensor(expected).double())


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.5, (0, 0.25, 0)), (1.1, (0, 0.5, 1 / 15)), (-1.2, (-0.05, -0.5, -0.1))]
)
def test_l1_fills_the_heaviest_pixel_first(gap, expected):
    points, normals = torch.tensor([[0.5, 0.5, 0.9]]).double(), torch.tensor([[1.0, 2.0, 1.5]]).double()
    points = points if gap > 0 else 1 - points
    steps = onto_hyperplane("l1", points, normals, torch.tensor([gap]).double())
    assert_close(steps[0], torch.tensor(expected).double())


@every
def test_without_a_box_in_the_way_the_step_is_the_gap_over_the_dual_norm(norm):
    normals = torch.randn(20, 9, generator=torch.Generator().manual_seed(4)).double()
    gaps = torch.linspace(-0.1, 0.1, 20).double()
    steps = onto_hyperplane(norm, torch.full((20, 9), 0.5).double(), normals, gaps)
    assert_close(steps.norm(p=ORDER[norm], dim=1), gaps.abs() / dual_norm(norm, normals))


@every
def test_beyond_the_boxs_reach_the_step_ends_in_the_nearest_corner(norm):
    points, normals, gaps = problems()
    steps = onto_hyperplane(norm, points, normals, 1e3 * gaps.sign())
    corner = torch.where(normals * gaps.sign()[:, None] > 0, 1.0, 0.0).double()
    assert_close(points + steps, torch.where(normals == 0, points, corner))


@every
def test_no_gap_and_no_normal_are_no_step(norm):
    points, normals, gaps = problems()
    assert not onto_hyperplane(norm, points, normals, 0 * gaps).any()
    assert not onto_hyperplane(norm, points, 0 * normals, gaps).any()


@every
def test_the_step_does_not_depend_on_the_hyperplanes_scale(norm):
    """Squares of 1e-30 are 0 in float32."""
    points, normals, gaps = (part.float() for part in problems())
    expected = onto_hyperplane(norm, points, normals, gaps)
    assert_close(onto_hyperplane(norm, points, 1e-30 * normals, 1e-30 * gaps), expected, rtol=1e-4, atol=1e-6)


@every
def test_large_images_are_met_to_rounding(norm):
    """Weights over six orders of magnitude, a hundred thousand pixels of eight bits."""
    generator = torch.Generator().manual_seed(5)
    points = (torch.rand(2, 100_000, generator=generator) * 256).floor().clamp(max=255) / 255
    normals = torch.randn(2, 100_000, generator=generator) * 10 ** (-6 * torch.rand(2, 100_000, generator=generator))
    room = torch.where(normals > 0, 1 - points, points)
    for share in (0.001, 0.5, 0.999):
        gaps = share * (normals.abs() * room).sum(1)
        steps = onto_hyperplane(norm, points, normals, gaps)
        assert_close((normals.double() * steps).sum(1), gaps.double(), rtol=1e-5, atol=0)


@every
def test_each_row_is_treated_alone_and_stacks_share_their_normals(norm):
    points, normals, gaps = problems()
    both = onto_hyperplane(norm, torch.stack([points, 1 - points]), normals, torch.stack([gaps, -gaps]))
    alone = [onto_hyperplane(norm, *(part[row : row + 1] for part in (points, normals, gaps))) for row in range(40)]
    assert torch.equal(both[0], torch.cat(alone))
    assert_close(both[1], -both[0])  # the mirrored problem


@every
def test_a_broken_gradient_is_not_hidden(norm):
    points, normals, gaps = problems(3)
    normals[1, 2] = torch.nan
    steps = onto_hyperplane(norm, points, normals, gaps)
    assert steps.isnan().any(1).tolist() == [False, True, False]
