"""Noise on every value of an image, each channel by itself."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from robust_train.keyed import Key, normal, uniform


def gaussian(x: np.ndarray, sigma: float, key: Key) -> np.ndarray:
    """x + sigma n, n ~ N(0, 1)."""
    return x + sigma * normal(key, x.shape, dtype=torch.float64).numpy()


def speckle(x: np.ndarray, sigma: float, key: Key) -> np.ndarray:
    """x + x sigma n, n ~ N(0, 1)."""
    return x + x * sigma * normal(key, x.shape, dtype=torch.float64).numpy()


def impulse(x: np.ndarray, amount: float, key: Key) -> np.ndarray:
    """Salt and pepper: with probability `amount` a value becomes 0 or 1, as likely the one as the other."""
    u = uniform(key, x.shape, dtype=torch.float64).numpy()
    return np.where(u < amount / 2, 0.0, np.where(u < amount, 1.0, x))


def shot(x: np.ndarray, photons: float, key: Key) -> np.ndarray:
    """N / photons, N ~ Poisson(photons x), by its quantile function: the least n with u < P(N <= n)."""
    u = uniform(key, x.shape, dtype=torch.float64).numpy()
    level = np.rint(255 * x)
    table, width = _poisson(float(photons))
    return (np.searchsorted(table, level + u, side="right") - level * width) / photons


@lru_cache(maxsize=16)
def _poisson(photons: float) -> tuple[np.ndarray, int]:
    """k + P(N <= n) of every grey level k, one after another, ascending, and how many n there are for each."""
    from scipy.stats import poisson

    n = np.arange(int(photons + 12 * photons**0.5 + 20))
    level = np.arange(256)[:, None]
    table = level + poisson.cdf(n, photons * level / 255)
    table[:, -1] = np.arange(1, 257)
    return table.ravel(), len(n)
