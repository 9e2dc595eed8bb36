"""Gabor filters with measured parameters. [docs/methods/v1-front-end.md]"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from robust_train.models.gabor import Cells, Tables, frequency_counts, kept_edges, kernels, sampled
from robust_train.read.errors import ConfigError

MANY = 40_000
SURE = 1e-3  # a right sample falls below it once in a thousand; seeds are fixed

# the histograms as they were printed, typed in again: edges, counts
ORIENTATION = [-22.5, 22.5, 67.5, 112.5, 157.5], [66, 49, 77, 54]
FREQUENCY = [0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.2]
COUNTS = {
    (2020, "simple"): [4, 4, 8, 25, 32, 26, 28, 12, 8],
    (2020, "complex"): [4, 4, 8, 25, 32, 26, 28, 12, 8],
    (2024, "simple"): [4, 4, 8, 25, 33, 26, 28, 12, 8],
    (2024, "complex"): [0, 0, 9, 9, 7, 10, 23, 12, 14],
}
JOINT = {  # rows nx, columns ny
    2020: [[2, 0, 1, 0, 0], [8, 9, 4, 1, 0], [1, 2, 19, 17, 3], [0, 0, 1, 7, 4], [0, 0, 0, 0, 0]],
    2024: [[2, 0, 1, 0], [8, 9, 4, 1], [1, 2, 19, 17], [0, 0, 1, 7]],
}
SIZE_EDGES = {2020: 10 ** np.linspace(-1, 0.2, 6), 2024: 10 ** np.linspace(-1, 0, 5)}


def bank(tables: Tables = 2020, kind: str = "simple", sf: tuple[float, float] = (0, 11.3), seed: int = 1) -> Cells:
    simple, complex_ = (MANY, 0) if kind == "simple" else (0, MANY)
    return sampled(simple, complex_, tables, seed, *sf, 0.75)


def one(frequency: float, orientation: float, phase: float, nx: float, ny: float) -> Cells:
    return Cells(*(np.array([value]) for value in (frequency, orientation, phase, nx, ny)))


def chi_square(found: np.ndarray, counts: np.ndarray) -> float:
    """The p of Pearson's test; 0 where there is a number in a cell that nobody measured."""
    found, counts = np.ravel(found), np.ravel(np.array(counts, dtype=float))
    if found[counts == 0].any():
        return 0.0
    kept = counts > 0
    return stats.chisquare(found[kept], counts[kept] / counts.sum() * found.sum()).pvalue


def uniformly(x: np.ndarray, edges: object, counts: object) -> float:
    """The p of Kolmogorov and Smirnov's test that `x` has the histogram's distribution, level inside each bin."""
    cumulative = np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)
    return stats.kstest(np.interp(x, edges, cumulative), "uniform").pvalue


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ((0.25, 0, 0, 0.25, 0.5), [[0, 0, 0], [0.070227, 0.079577, 0.070227], [0, 0, 0]]),
        ((0.25, 90, 0, 0.25, 0.5), [[0, 0.070227, 0], [0, 0.079577, 0], [0, 0.070227, 0]]),
        (
            (0.1, 45, 90, 0.1, 0.2),
            [[0.022722, 0.025024, 0], [0.025024, 0, -0.025024], [0, -0.025024, -0.022722]],
        ),
    ],
)
def test_kernels_are_those_in_print(cell: tuple[float, ...], printed: list[list[float]]) -> None:
    """f = 0.25, sx = 1, sy = 2 at 0 and 90 degrees; f = 0.1, sx = 1, sy = 2 at 45 degrees with the sine's phase."""
    found = kernels(one(*cell), 1.0, 3)[0].numpy()
    np.testing.assert_allclose(found, printed, atol=6e-7)


def plain(frequency: float, orientation: float, phase: float, nx: float, ny: float, ppd: float, ksize: int):
    """The formula, a number at a time."""
    f = frequency / ppd
    sx, sy, theta, phi = nx / f, ny / f, math.radians(orientation), math.radians(phase)
    half = ksize // 2
    rows = []
    for i in range(-half, half + 1):
        row = []
        for j in range(-half, half + 1):
            u = i * math.cos(theta) + j * math.sin(theta)
            v = -i * math.sin(theta) + j * math.cos(theta)
            envelope = math.exp(-(u * u / sx**2 + v * v / sy**2) / 2) / (2 * math.pi * sx * sy)
            row.append(envelope * math.cos(2 * math.pi * f * u + phi))
        rows.append(row)
    return rows


@pytest.mark.parametrize("shift", [0.0, 90.0])
@pytest.mark.parametrize(("ppd", "ksize"), [(28.0, 7), (32.0, 5)])
def test_kernels_are_the_formula(shift: float, ppd: float, ksize: int) -> None:
    cells = sampled(6, 4, 2020, 3, 0, 9, 0.75)
    found = kernels(cells, ppd, ksize, shift)
    columns = (cells.frequency, cells.orientation, cells.phase, cells.nx, cells.ny)
    for number, (frequency, orientation, phase, nx, ny) in enumerate(zip(*columns, strict=True)):
        wanted = plain(frequency, orientation, phase + shift, nx, ny, ppd, ksize)
        np.testing.assert_allclose(found[number].numpy(), wanted, rtol=1e-10, atol=1e-15)


def test_a_cell_of_twice_the_frequency_at_twice_the_pixels_a_degree_is_the_same_kernel() -> None:
    slow, fast = kernels(one(2, 30, 40, 0.3, 0.5), 16, 9), kernels(one(4, 30, 40, 0.3, 0.5), 32, 9)
    np.testing.assert_allclose(slow, fast, rtol=1e-12)


def test_a_turn_of_90_degrees_turns_the_kernel() -> None:
    """i -> j, j -> -i: the stripes of the one lie across those of the other."""
    flat, upright = kernels(one(3, 20, 50, 0.3, 0.6), 28, 11)[0], kernels(one(3, 110, 50, 0.3, 0.6), 28, 11)[0]
    np.testing.assert_allclose(upright.numpy(), np.rot90(flat.numpy(), 1), atol=1e-15)


@pytest.mark.parametrize(("phase", "simple", "complex_"), [(0, 12.463, 8.8129), (90, 0.0, 8.8037), (180, 0.0, 8.8129)])
def test_the_response_to_a_grating_is_that_in_print(phase: float, simple: float, complex_: float) -> None:
    """cos(2 pi 0.1 row + phase) under f = 0.1, sx = sy = 4, 25 pixels, gain 25."""
    cell, row = one(0.1, 0, 0, 0.4, 0.4), np.arange(-12, 13)
    grating = np.cos(2 * np.pi * 0.1 * row + np.radians(phase))[:, None]
    even, odd = (float((kernels(cell, 1.0, 25, shift)[0].numpy() * grating).sum()) for shift in (0.0, 90.0))
    assert 25 * max(even, 0) == pytest.approx(simple, abs=5e-4)
    assert 25 * math.sqrt((even**2 + odd**2) / 2) == pytest.approx(complex_, abs=6e-5)


def test_a_grating_across_is_hardly_seen() -> None:
    row = np.arange(-12, 13)
    response = (kernels(one(0.1, 0, 0, 0.4, 0.4), 1.0, 25)[0].numpy() * np.cos(2 * np.pi * 0.1 * row)[None]).sum()
    assert abs(response) == pytest.approx(0.0019, abs=5e-5)
    assert 25 * abs(response) == pytest.approx(0.0471, abs=5e-5)


@pytest.mark.parametrize(("sf_max", "median"), [(9, 2.69883), (6, 2.53382), (11.3, 2.81927)])
def test_the_median_frequency_is_that_in_print(sf_max: float, median: float) -> None:
    edges = kept_edges(0, sf_max)
    cumulative = np.concatenate([[0], np.cumsum(frequency_counts(2020, "simple", edges))])
    cumulative /= cumulative[-1]
    if sf_max == 9:
        printed = [0, 0.02878, 0.05755, 0.11511, 0.29496, 0.52518, 0.71223, 0.91367, 1]
        np.testing.assert_allclose(cumulative, printed, atol=5e-6)
    assert 2 ** np.interp(0.5, cumulative, np.log2(edges)) == pytest.approx(median, abs=5e-6)
    # the sample's: 5 standard errors of a median whose density is that of its bin, in octaves
    assert abs(math.log2(np.median(bank(sf=(0, sf_max)).frequency) / median)) < 5 * 0.5 / 0.38 / math.sqrt(MANY)


def test_the_median_size_is_that_in_print() -> None:
    marginal = np.sum(JOINT[2020], 1)
    cumulative = np.concatenate([[0], np.cumsum(marginal)]) / marginal.sum()
    np.testing.assert_allclose(cumulative, [0, 0.03797, 0.31646, 0.84810, 1, 1], atol=5e-6)
    median = 10 ** np.interp(0.5, cumulative[:5], np.log10(SIZE_EDGES[2020][:5]))
    assert median == pytest.approx(0.365475, abs=5e-7)
    assert np.median(bank().nx) == pytest.approx(median, rel=0.01)


def test_the_published_seed_gives_the_published_cells() -> None:
    """512 cells of seed 0; the normals of the copula may differ in late digits with NumPy's singular values."""
    cells = sampled(256, 256, 2020, 0, 0, 9, 0.75)
    np.testing.assert_allclose(cells.phase[:3], [197.5729, 257.4682, 216.9948], atol=1e-4)
    np.testing.assert_allclose(cells.orientation[:3], [106.6932, 98.1272, 89.7701], atol=1e-4)
    np.testing.assert_allclose(cells.frequency[:3], [2.2152, 5.4342, 4.2983], atol=1e-3)
    np.testing.assert_allclose(cells.nx[:3], [0.2698, 0.6359, 0.4820], atol=1e-3)
    np.testing.assert_allclose(cells.ny[:3], [0.4792, 1.52, 0.4795], atol=1e-3)
    assert np.corrcoef(np.log(cells.frequency), np.log(cells.nx))[0, 1] == pytest.approx(0.7578, abs=1e-3)


TABLES = [(2020, "simple"), (2024, "simple"), (2024, "complex")]


@pytest.mark.parametrize(("tables", "kind"), TABLES)
def test_cells_have_the_measured_frequencies(tables: Tables, kind: str) -> None:
    x = bank(tables, kind).frequency
    counts = COUNTS[tables, kind]
    assert chi_square(np.histogram(x, FREQUENCY)[0], counts) > SURE
    assert uniformly(np.log2(x), np.log2(FREQUENCY), counts) > SURE


@pytest.mark.parametrize(("tables", "kind"), TABLES)
def test_cells_have_the_measured_sizes(tables: Tables, kind: str) -> None:
    """nx and ny together: a table that were transposed is another."""
    cells, edges = bank(tables, kind), SIZE_EDGES[tables]
    joint = np.array(JOINT[tables])
    found = np.histogram2d(cells.nx, cells.ny, [edges, edges])[0]
    assert found.sum() == MANY
    assert chi_square(found, joint) > SURE
    assert chi_square(found, joint.T) < 1e-9
    assert chi_square(found.sum(1), joint.sum(1)) > SURE
    for x, marginal in ((cells.nx, joint.sum(1)), (cells.ny, joint.sum(0))):
        assert uniformly(np.log10(x), np.log10(edges), marginal) > SURE


@pytest.mark.parametrize("tables", [2020, 2024])
def test_cells_have_the_measured_orientations_and_any_phase(tables: Tables) -> None:
    cells = bank(tables)
    if tables == 2020:
        assert cells.orientation.min() >= 0
        assert cells.orientation.max() < 180
    else:
        assert cells.orientation.min() < 0  # not taken modulo 180 there
    unwrapped = (cells.orientation + 22.5) % 180 - 22.5
    assert chi_square(np.histogram(unwrapped, ORIENTATION[0])[0], ORIENTATION[1]) > SURE
    assert uniformly(unwrapped, *ORIENTATION) > SURE
    assert stats.kstest(cells.phase / 360, "uniform").pvalue > SURE


@pytest.mark.parametrize("correlation", [0.75, 0.0, -0.5])
def test_size_and_frequency_correlate_as_a_gaussian_copula_does(correlation: float) -> None:
    """Ranks of a Gaussian copula correlate by (6 / pi) asin(rho / 2), whatever the histograms."""
    cells = sampled(MANY, 0, 2020, 1, 0, 9, correlation)
    found = stats.spearmanr(cells.nx, cells.frequency).statistic
    assert abs(found - 6 / math.pi * math.asin(correlation / 2)) < 5 / math.sqrt(MANY)
    for other in (cells.orientation, cells.phase):
        assert abs(stats.spearmanr(other, cells.frequency).statistic) < 5 / math.sqrt(MANY)


def test_the_uniform_control_is_uniform_and_independent() -> None:
    cells = bank("uniform")
    octaves = np.log2(cells.frequency)
    levels = {
        "orientation": cells.orientation / 180,
        "phase": cells.phase / 360,
        "nx": (np.log10(cells.nx) + 1) / 1.2,
        "ny": (np.log10(cells.ny) + 1) / 1.2,
        "frequency": np.interp(octaves, np.log2(FREQUENCY), np.linspace(0, 1, len(FREQUENCY))),
    }
    for level in levels.values():
        assert chi_square(np.histogram(level, 10, (0, 1))[0], np.ones(10)) > SURE
        assert stats.kstest(level, "uniform").pvalue > SURE
    together = np.abs(np.corrcoef(list(levels.values())) - np.eye(len(levels)))
    assert together.max() < 5 / math.sqrt(MANY)


@pytest.mark.parametrize(("sf_max", "ends"), [(9.0, 8.0), (8.0, 5.6), (11.3, 11.2)])
def test_the_control_is_the_published_draw(sf_max: float, ends: float) -> None:
    """Phase, orientation, frequency, nx, ny, each from numpy's legacy generator; no bin that ends at sf_max itself."""
    cells, draw = sampled(3, 4, "uniform", 5, 0.0, sf_max, 0.75), np.random.RandomState(5)
    phase, orientation, level, nx, ny = (draw.rand(7) for _ in range(5))
    edges = np.log2([edge for edge in FREQUENCY if edge <= ends])
    np.testing.assert_allclose(cells.phase, 360 * phase)
    np.testing.assert_allclose(cells.orientation, 180 * orientation)
    place = level * (len(edges) - 1)
    whole = place.astype(int)
    octaves = edges[whole] + (place - whole) * (edges[whole + 1] - edges[whole])
    np.testing.assert_allclose(cells.frequency, 2**octaves)
    np.testing.assert_allclose(cells.nx, 10 ** (-1 + 1.2 * nx))
    np.testing.assert_allclose(cells.ny, 10 ** (-1 + 1.2 * ny))


@pytest.mark.parametrize("tables", [2020, 2024, "uniform"])
@pytest.mark.parametrize("sf", [(0.5, 2.0), (2.0, 5.6), (5.6, 11.2)])
def test_a_range_of_frequencies_keeps_its_bins_and_their_shares(tables: Tables, sf: tuple[float, float]) -> None:
    """The low, middle and high variants."""
    first, last = FREQUENCY.index(sf[0]), FREQUENCY.index(sf[1])
    counts = COUNTS.get((tables, "simple"), [1] * 9)[first:last]
    x = bank(tables, sf=(sf[0], sf[1] + 0.01)).frequency  # the control has no bin that ends at the limit itself
    assert sf[0] <= x.min() < 1.05 * sf[0]
    assert sf[1] / 1.05 < x.max() <= sf[1]
    assert chi_square(np.histogram(x, FREQUENCY[first : last + 1])[0], counts) > SURE


@pytest.mark.parametrize("sf", [(3.0, 3.5), (4.0, 4.0), (2.1, 3.9), (12.0, 20.0)])
def test_a_range_without_a_whole_bin_is_refused(sf: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"holds no whole bin .* take two of 0\.5, 0\.7, 1, .*, 11\.2"):
        sampled(4, 4, 2020, 0, *sf, 0.75)


def test_a_range_that_no_complex_cell_was_measured_in_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hold no complex cells from 0\.5 to 1 .*: widen .* or take complex=0"):
        sampled(4, 4, 2024, 0, 0.5, 1.0, 0.75)
    assert len(sampled(4, 0, 2024, 0, 0.5, 1.0, 0.75).frequency) == 4


def test_the_seed_alone_decides_the_cells() -> None:
    first = sampled(5, 3, 2024, 7, 0, 9, 0.75)
    np.random.seed(99)
    again, other = sampled(5, 3, 2024, 7, 0, 9, 0.75), sampled(5, 3, 2024, 8, 0, 9, 0.75)
    for name in ("frequency", "orientation", "phase", "nx", "ny"):
        assert len(getattr(first, name)) == 8
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
