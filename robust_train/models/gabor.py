"""Gabor filters whose parameters follow what was measured in monkey V1: tables, sampling, kernels.

The tables are of De Valois, Albrecht and Thorell 1982 (peak spatial frequency), De Valois, Yund and Hepler 1982
(orientation) and Ringach 2002 (size), as Dapello et al. 2020 (bioRxiv 2020.06.16.154542) took them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.random import RandomState
from scipy.stats import norm
from torch import Tensor

from robust_train.read.errors import ConfigError

Numbers = Sequence[float] | np.ndarray
Tables = Literal[2020, 2024, "uniform"]
ORIENTATION = ((-22.5, 22.5, 67.5, 112.5, 157.5), (66, 49, 77, 54))  # degrees: edges, counts
FREQUENCY_EDGES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.2)  # cycles a degree
SIZE = ((2, 0, 1, 0, 0), (8, 9, 4, 1, 0), (1, 2, 19, 17, 3), (0, 0, 1, 7, 4), (0, 0, 0, 0, 0))  # rows nx, columns ny


@dataclass(frozen=True)
class Measured:
    """What was measured: histograms of peak frequency, one for each kind of cell, and of size."""

    frequency: Mapping[str, Sequence[int]]  # counts between FREQUENCY_EDGES
    size_edges: Sequence[float]  # of nx and ny: envelope widths times frequency, without a unit
    size: Sequence[Sequence[int]]  # counts, rows nx, columns ny
    wrapped: bool  # whether orientations below 0 are taken modulo 180 degrees
    apart: bool  # whether complex cells are drawn after simple ones, rather than with them


MEASURED: Mapping[object, Measured] = {
    2020: Measured(
        frequency=dict.fromkeys(("simple", "complex"), (4, 4, 8, 25, 32, 26, 28, 12, 8)),
        size_edges=tuple(10 ** np.linspace(-1, 0.2, 6)),
        size=SIZE,
        wrapped=True,
        apart=False,
    ),
    2024: Measured(
        frequency={"simple": (4, 4, 8, 25, 33, 26, 28, 12, 8), "complex": (0, 0, 9, 9, 7, 10, 23, 12, 14)},
        size_edges=tuple(10 ** np.linspace(-1, 0, 5)),
        size=tuple(row[:4] for row in SIZE[:4]),
        wrapped=False,
        apart=True,
    ),
}


@dataclass(frozen=True)
class Cells:
    """The parameters of a bank of cells, each [n], float64; simple cells first."""

    frequency: np.ndarray  # cycles a degree
    orientation: np.ndarray  # degrees
    phase: np.ndarray  # degrees
    nx: np.ndarray  # width of the envelope across the stripes, times frequency
    ny: np.ndarray  # along them


def sampled(
    simple: int, complex_: int, tables: Tables, seed: int, sf_min: float, sf_max: float, correlation: float
) -> Cells:
    """A bank of `simple` + `complex_` cells. Raises ConfigError where no frequency bin lies in the range.

    In the published order of draws from numpy's RandomState(seed), which gives the cells of published networks: phases;
    orientations; then, for all cells together (2020) or for simple and then complex ones (2024), a Gaussian copula of
    size and frequency, and ny given nx. The control, uniform: orientation U(0, 180), then frequency (level in octaves
    inside each bin, bins alike), nx and ny log-uniform, all independent; a bin that ends at sf_max itself is left out.
    """
    random, count = RandomState(seed), simple + complex_
    phase = random.uniform(0, 360, count)
    edges = kept_edges(sf_min, sf_max, tables)
    if tables == "uniform":
        orientation = random.uniform(0, 180, count)
        frequency = _interpolated(random.uniform(0, 1, count), np.log2(edges), np.ones(len(edges) - 1))
        nx, ny = (10 ** random.uniform(-1, 0.2, count) for _ in range(2))
        return Cells(2**frequency, orientation, phase, nx, ny)
    measured = MEASURED[tables]
    orientation = _interpolated(random.uniform(0, 1, count), *ORIENTATION)
    if measured.wrapped:
        orientation = np.where(orientation < 0, orientation + 180, orientation)
    groups = [("simple", simple), ("complex", complex_)] if measured.apart else [("simple", count)]
    drawn = [_sizes(random, number, tables, kind, edges, correlation) for kind, number in groups]
    nx, ny, frequency = (np.concatenate(column) for column in zip(*drawn, strict=True))
    return Cells(frequency, orientation, phase, nx, ny)


def kept_edges(sf_min: float, sf_max: float, tables: Tables = 2020) -> np.ndarray:
    """The edges of frequency bins from sf_min to sf_max. ConfigError where they hold no bin.

    In the published code sf_max may be an edge of the measured tables, and may not of the control's.
    """
    kept = [edge for edge in FREQUENCY_EDGES if sf_min <= edge <= sf_max]
    edges = np.array([edge for edge in kept if edge < sf_max or tables != "uniform"])
    if len(edges) < 2:
        raise ConfigError(
            f"sf_min={sf_min:g} to sf_max={sf_max:g} cycles a degree holds no whole bin of the measured frequencies: "
            f"take two of {', '.join(f'{edge:g}' for edge in FREQUENCY_EDGES)}"
        )
    return edges


def frequency_counts(tables: Tables, kind: str, edges: np.ndarray) -> np.ndarray:
    """Cells counted in the bins between `edges`."""
    first = FREQUENCY_EDGES.index(edges[0])
    if tables == "uniform":
        return np.ones(len(edges) - 1)
    return np.array(MEASURED[tables].frequency[kind][first : first + len(edges) - 1], dtype=float)


def _sizes(
    random: RandomState, count: int, tables: Tables, kind: str, edges: np.ndarray, correlation: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """nx, ny and frequency of so many cells."""
    measured = MEASURED[tables]
    pairs = random.multivariate_normal((0, 0), ((1, correlation), (correlation, 1)), count)
    for_nx, for_frequency = norm.cdf(pairs).reshape(count, 2).T
    joint, logs = np.array(measured.size, dtype=float), np.log10(measured.size_edges)
    log_nx = _interpolated(for_nx, logs, joint.sum(1))
    uniforms = random.uniform(0, 1, count)
    log_ny = np.empty(count)
    for row in range(len(joint)):  # the last bin whose lower edge is below nx
        inside = (log_nx > logs[row]) & (log_nx <= logs[row + 1])
        if inside.any():
            log_ny[inside] = _interpolated(uniforms[inside], logs, joint[row])
    counts = frequency_counts(tables, kind, edges)
    if count and not counts.sum():
        raise ConfigError(
            f"tables {tables} hold no {kind} cells from {edges[0]:g} to {edges[-1]:g} cycles a degree: widen sf_min "
            f"and sf_max, or take {kind}=0"
        )
    return 10**log_nx, 10**log_ny, 2 ** _interpolated(for_frequency, np.log2(edges), counts)


def _interpolated(
    u: np.ndarray, edges: Sequence[float] | np.ndarray, counts: Sequence[float] | np.ndarray
) -> np.ndarray:
    """The quantile function of a histogram at `u`, linear inside each bin."""
    cumulative = np.concatenate([[0.0], np.cumsum(np.asarray(counts, dtype=float))])
    return np.interp(u, cumulative / max(cumulative[-1], 1), np.asarray(edges, dtype=float))


def kernels(cells: Cells, pixels_per_degree: float, ksize: int, shift: float = 0.0) -> Tensor:
    """[n, ksize, ksize] float64: the cells' receptive fields, their phases moved by `shift` degrees.

        G[i, j] = exp(-(u^2 / sx^2 + v^2 / sy^2) / 2) / (2 pi sx sy) cos(2 pi f u + phase)
        u = i cos t + j sin t,    v = -i sin t + j cos t,    i the row, j the column, from the centre

    f = frequency / pixels_per_degree in cycles a pixel, sx = nx / f and sy = ny / f in pixels. Nothing is taken off the
    mean; a window of ksize cuts off what of large cells is beyond it, as in the published model.
    """

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float64)).view(-1, 1, 1)

    f = column(cells.frequency) / pixels_per_degree
    angle, phase = column(np.deg2rad(cells.orientation)), column(np.deg2rad(cells.phase + shift))
    sx, sy = column(cells.nx) / f, column(cells.ny) / f
    place = torch.arange(ksize, dtype=torch.float64) - ksize // 2
    i, j = place.view(1, -1, 1), place.view(1, 1, -1)
    u, v = i * angle.cos() + j * angle.sin(), j * angle.cos() - i * angle.sin()
    envelope = (-0.5 * (u.square() / sx.square() + v.square() / sy.square())).exp() / (2 * torch.pi * sx * sy)
    return envelope * (2 * torch.pi * f * u + phase).cos()
