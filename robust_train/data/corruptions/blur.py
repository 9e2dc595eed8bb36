"""Blurs: out of focus, through glass, in motion, while zooming."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from robust_train.keyed import Key, integers, uniform

HAIR = 1e-6  # grey levels; what rounding may take off a whole number is given back before the fraction is cut off


def gaussian(x: np.ndarray, sigma: float, key: Key) -> np.ndarray:
    """Convolved with a Gaussian of `sigma` pixels, cut at 4 sigma; the border is continued."""
    return smoothed(x, sigma)


def smoothed(x: np.ndarray, sigma: float, mode: str = "nearest") -> np.ndarray:
    """The last two axes convolved with a Gaussian."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, sigma, mode=mode, axes=(-2, -1))


def defocus(x: np.ndarray, c: tuple[float, float], key: Key) -> np.ndarray:
    """Convolved with a disk, c = (radius, sigma of its softened rim); the border is mirrored at its pixels' centres."""
    from scipy.signal import fftconvolve

    kernel = disk(*c)
    reach = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    return np.stack([fftconvolve(image, kernel[None], mode="valid", axes=(1, 2)) for image in padded])


@lru_cache(maxsize=32)
def disk(radius: float, sigma: float) -> np.ndarray:
    """[K, K], sum 1: i^2 + j^2 <= radius^2, smoothed by a Gaussian of 3 x 3 taps (5 x 5 where radius > 8).

    Rows and columns without weight are left out: at 32 pixels the generators' 17 x 17 grid is wider than half an image.
    """
    from scipy.ndimage import correlate1d

    reach = max(8, int(radius))
    i = np.arange(-reach, reach + 1)
    inside = (i**2 + i[:, None] ** 2 <= radius**2).astype(float)
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    kernel = correlate1d(inside / inside.sum(), weights, axis=0, mode="mirror")
    kernel = correlate1d(kernel, weights, axis=1, mode="mirror")
    cut = reach - int(np.abs(i[kernel.any(axis=0)]).max())
    return kernel[cut : len(i) - cut, cut : len(i) - cut]


def glass(x: np.ndarray, c: tuple[float, int, int], key: Key) -> np.ndarray:
    """Smoothed, pixels moved about, smoothed again; c = (sigma, largest move, rounds).

    A round takes the pixels, d from the border, from the last to the first; each becomes a copy of the one that is
    moved to it, from at most d pixels away (d - 1 downwards and to the right), as that stands by then.
    """
    sigma, most, rounds = c
    size = x.shape[-1]
    moved = np.floor(255 * smoothed(x, sigma) + HAIR).reshape(*x.shape[:2], -1)
    for turn in range(rounds):
        shift = integers(key.at(turn), (len(x), 2, size, size), 2 * most).numpy() - most
        moved = np.take_along_axis(moved, sources(shift, most)[:, None], axis=2)
    return smoothed(moved.reshape(x.shape) / 255, sigma)


def sources(shift: np.ndarray, most: int) -> np.ndarray:
    """[B, H W]: which pixel each one shows in the end, when copies are made from the last pixel to the first.

    shift [B, 2, H, W]: (rows, columns) from where each is copied. A pixel copied from a later one shows what that one
    shows; from an earlier one, which is not yet changed, that pixel itself. Pointers are doubled until none moves.
    """
    size = shift.shape[-1]
    i = np.arange(size)
    own = (i[:, None] * size + i).ravel()
    taken = (i > most) & (i <= size - most)
    changed = (taken[:, None] & taken).ravel()
    found = np.where(changed, own + (shift[:, 0] * size + shift[:, 1]).reshape(len(shift), -1), own)
    later = found > own
    # entries up to n: what a changed pixel shows; from n on: the pixels as they were, which point at themselves
    n = len(own)
    follows = later & changed[found]
    pointer = np.concatenate([np.where(follows, found, found + n), np.broadcast_to(own + n, found.shape)], axis=1)
    while (pointer[:, :n] < n).any():
        pointer = np.take_along_axis(pointer, pointer, axis=1)
    return pointer[:, :n] - n


def motion(x: np.ndarray, c: tuple[int, float], key: Key, hdri: bool = False) -> np.ndarray:
    """Drawn out along a line at an angle of U(-45, 45) degrees; c = (radius, sigma). The result has 8 bits."""
    angles = -45 + 90 * uniform(key, (len(x), 1), dtype=torch.float64).numpy()[:, 0]
    return whole(255 * drawn_out(x, *c, angles), hdri) / 255


def whole(levels: np.ndarray, hdri: bool) -> np.ndarray:
    """Grey levels as ImageMagick writes them: fractions cut off (common builds, Q16), or rounded (HDRI builds)."""
    return np.rint(levels) if hdri else np.floor(levels + HAIR)


def drawn_out(x: np.ndarray, radius: int, sigma: float, angles: np.ndarray) -> np.ndarray:
    """Motion blur as ImageMagick defines it: the pixel at p becomes

        sum_i w_i x(p + ceil(i (cos a, sin a) - 1/2)),    w_i ~ exp(-i^2 / (2 sigma^2)),    i = 0, ..., 2 radius

    with columns to the right and rows downwards; the border is continued. x [B, ..., H, W]; angles a [B] in degrees.
    """
    size, reach = x.shape[-1], 2 * radius
    weights = np.exp(-(np.arange(reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    widths = [(0, 0)] * (x.ndim - 3) + [(reach, reach)] * 2
    out = np.empty_like(x)
    for image, blurred, angle in zip(x, out, np.deg2rad(angles), strict=True):
        padded = np.pad(image, widths, mode="edge")
        blurred[...] = 0
        for i, weight in enumerate(weights):
            row, column = (reach + math.ceil(i * part - 0.5) for part in (math.sin(angle), math.cos(angle)))
            blurred += weight * padded[..., row : row + size, column : column + size]
    return out


def zoom(x: np.ndarray, c: tuple[float, float], key: Key) -> np.ndarray:
    """The mean of the image and its enlargements by 1, 1 + step, ... below `stop`; c = (stop, step).

    The factors are those of NumPy's `arange` in float64, which made the published files: at 224 pixels and severity 1
    they are 12, up to 1.11.
    """
    factors = np.arange(1, *c)
    total = x.copy()
    for factor in factors:
        total += enlarged(x, factor)
    return total / (len(factors) + 1)


def enlarged(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of the last two axes, enlarged by linear interpolation to the size it was cut from.

    The middle has ceil(size / factor) pixels, corner pixels keep their places, and what is too much is cut off.
    """
    size = x.shape[-1]
    cut = math.ceil(size / factor)
    length = round(cut * factor)
    first = (size - cut) // 2
    trim = (length - size) // 2
    place = np.arange(trim, trim + size) * ((cut - 1) / max(1, length - 1))
    below = np.minimum(place.astype(int), cut - 1)
    weight = place - below
    above = np.minimum(below + 1, cut - 1)
    rows = x[..., first + below, :] * (1 - weight)[:, None] + x[..., first + above, :] * weight[:, None]
    return rows[..., first + below] * (1 - weight) + rows[..., first + above] * weight
