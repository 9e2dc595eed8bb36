"""Spatter: drops of water on the lens, or mud."""

from __future__ import annotations

import numpy as np
import torch

from robust_train.data.corruptions.blur import smoothed
from robust_train.data.corruptions.weather import LUMINANCE
from robust_train.keyed import Key, normal

WATER, MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
WEAK, STRONG = 50, 150  # Canny's thresholds
FAR = 20  # pixels: beyond that a drop is as deep as it gets
UNIT = 10_000  # of distances: they are whole numbers of it
MOVES = tuple(  # (rows, columns, cost in 10^-4 pixels) of a 5 x 5 chamfer
    (rows, columns, cost)
    for away, cost in (((0, 1), 10_000), ((1, 1), 14_000), ((1, 2), 21_969))
    for rows in range(-2, 3)
    for columns in range(-2, 3)
    if tuple(sorted((abs(rows), abs(columns)))) == away
)
TILT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # lights drops from one side


def spatter(x: np.ndarray, c: tuple[float, ...], key: Key) -> np.ndarray:
    """Water: x + m water. Mud: x (1 - m) + m mud. m [B, 1, H, W] is how much of it lies on a pixel.

    c = (mean, deviation and smoothing of a Gaussian field; threshold above which it is liquid; amount of water, or
    smoothing of mud; 0 for water, 1 for mud). Mud thinner than 0.8 is none.
    """
    mean, deviation, sigma, threshold, amount, mud = c
    size = x.shape[-1]
    field = mean + deviation * normal(key, (len(x), size, size), dtype=torch.float64).numpy()
    liquid = smoothed(field, sigma)
    colour = np.array(MUD if mud else WATER)
    if x.shape[1] == 1:
        colour = np.atleast_1d(colour @ LUMINANCE)
    colour = colour[:, None, None]
    if mud:
        m = smoothed((liquid > threshold).astype(float), amount)[:, None]
        m = np.where(m < 0.8, 0, m)
        return x * (1 - m) + m * colour
    depth = np.floor(255 * np.where(liquid < threshold, 0, liquid)).clip(0, 255)
    return x + amount * np.stack([water(one) for one in depth])[:, None] * colour


def water(depth: np.ndarray) -> np.ndarray:
    """[H, W] in [0, 1]: how much light drops of a depth (whole numbers to 255) add: depth times a lit relief.

    The relief is the distance from the drops' edges (`chamfer`, up to 20 pixels), smoothed, equalised, lit from one
    side, smoothed. Divided by its largest value; 0 where there is no drop.
    """
    from scipy.ndimage import correlate

    relief = equalised(np.floor(_box(chamfer(canny(depth, WEAK, STRONG), FAR)) + 1e-6).astype(int))
    lit = np.rint(_box(correlate(relief, TILT, mode="mirror").clip(0, 255)))
    light = depth * lit
    return light / max(light.max(), 1)


def chamfer(edges: np.ndarray, most: int) -> np.ndarray:
    """[H, W]: the distance from the nearest edge by moves of 1 (straight), 1.4 (diagonal) and 2.1969 (a knight's).

    Within 2 % of Euclid's, and `most` from there on. Borgefors 1986's 5 x 5 mask with OpenCV's costs. Each round lets
    every distance spread by one move, until none does.
    """
    found = np.where(edges, 0, most * UNIT)
    while True:
        padded = np.pad(found, 2, constant_values=most * UNIT)
        best = found
        for rows, columns, cost in MOVES:
            moved = padded[2 + rows : 2 + rows + found.shape[0], 2 + columns : 2 + columns + found.shape[1]] + cost
            best = np.minimum(best, moved)
        if np.array_equal(best, found):
            return found / UNIT
        found = best


def canny(levels: np.ndarray, weak: float, strong: float) -> np.ndarray:
    """[H, W] bool: edges after Canny 1986, with Sobel's 3 x 3 gradient and |g| = |g_x| + |g_y|.

    Kept are ridges of |g| across the gradient (in steps of 45 degrees) above `weak` that touch, through such, one above
    `strong`. The border is continued for the gradient; beyond it |g| is 0.
    """
    from scipy.ndimage import label, sobel

    across, down = (sobel(levels, axis=axis, mode="nearest") for axis in (1, 0))
    size = np.abs(across) + np.abs(down)
    padded = np.pad(size, 1)

    def beside(rows: int, columns: int) -> np.ndarray:
        return padded[1 + rows : 1 + rows + size.shape[0], 1 + columns : 1 + columns + size.shape[1]]

    flat = np.abs(down) < np.tan(np.pi / 8) * np.abs(across)
    steep = np.abs(down) > np.tan(3 * np.pi / 8) * np.abs(across)
    rising = np.where(across * down < 0, (size > beside(-1, 1)) & (size > beside(1, -1)), False)
    falling = np.where(across * down < 0, False, (size > beside(-1, -1)) & (size > beside(1, 1)))
    ridge = np.where(
        flat,
        (size > beside(0, -1)) & (size >= beside(0, 1)),
        np.where(steep, (size > beside(-1, 0)) & (size >= beside(1, 0)), rising | falling),
    )
    kept = ridge & (size > weak)
    parts, _ = label(kept, np.ones((3, 3)))
    return kept & np.isin(parts, np.unique(parts[kept & (size > strong)]))


def equalised(levels: np.ndarray) -> np.ndarray:
    """Grey levels spread so that their counts grow evenly from 0 to 255; one level alone stays as it is."""
    counts = np.bincount(levels.ravel(), minlength=256)
    least = int(np.flatnonzero(counts)[0])
    rest = levels.size - counts[least]
    return np.rint((np.cumsum(counts) - counts[least]) * (255 / rest))[levels] if rest else levels


def _box(x: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels; the border is mirrored at its pixels' centres."""
    from scipy.ndimage import uniform_filter

    return uniform_filter(x.astype(float), 3, mode="mirror")
