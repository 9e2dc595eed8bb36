"""The corruptions once more, one image at a time, in loops and with SciPy's own functions: what the fast must equal.

An image x is [H, W, 3] float64 in [0, 1]; `c` a severity's parameters; `key` names the one image. A result is taken to
grey levels as `generate.levels` does. Draws are the same as the fast code's, what is made of them is written anew.
"""

from __future__ import annotations

import colorsys
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, stats

from robust_train.keyed import Key, integers, normal, uniform


def drawn(make, key: Key, *shape: int, high: int | None = None) -> np.ndarray:
    """The key's numbers for one image."""
    if high is not None:
        return make(key, (1, *shape), high)[0].numpy()
    return make(key, (1, *shape), dtype=torch.float64)[0].numpy()


def channels_last(draws: np.ndarray) -> np.ndarray:
    return draws.transpose(1, 2, 0)


def blurred(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4) -> np.ndarray:
    """Every channel alone."""
    bands = [ndimage.gaussian_filter(x[..., c], sigma, mode=mode, truncate=truncate) for c in range(x.shape[2])]
    return np.stack(bands, axis=2)


def luminance(x: np.ndarray) -> np.ndarray:
    return 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


# -- noise ----------------------------------------------------------------------------------------


def gaussian_noise(x, c, key):
    return x + c * channels_last(drawn(normal, key, 3, *x.shape[:2]))


def speckle_noise(x, c, key):
    return x + x * channels_last(drawn(normal, key, 3, *x.shape[:2])) * c


def impulse_noise(x, c, key):
    u, out = channels_last(drawn(uniform, key, 3, *x.shape[:2])), x.copy()
    out[u < c] = 1
    out[u < c / 2] = 0
    return out


def shot_noise(x, c, key):
    u = channels_last(drawn(uniform, key, 3, *x.shape[:2]))
    return stats.poisson.ppf(u, np.round(255 * x) / 255 * c).clip(0) / c  # at u = 0 SciPy says -1


# -- blur -----------------------------------------------------------------------------------------


def gaussian_blur(x, c, key):
    return blurred(x, c)


def defocus_blur(x, c, key):
    radius, sigma = c
    reach = 8 if radius <= 8 else radius
    kernel = np.array(
        [[float(i * i + j * j <= radius * radius) for j in range(-reach, reach + 1)] for i in range(-reach, reach + 1)]
    )
    kernel /= kernel.sum()
    taps = np.arange(3) - 1 if radius <= 8 else np.arange(5) - 2
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    smoother = np.outer(weights, weights) / weights.sum() ** 2
    kernel = ndimage.correlate(kernel, smoother, mode="mirror")
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], axis=2)


def glass_blur(x, c, key):
    sigma, most, rounds = c
    size = len(x)
    levels = np.floor(255 * blurred(x, sigma) + 1e-6).astype(np.uint8)
    for turn in range(rounds):
        moves = drawn(integers, key.at(turn), 2, size, size, high=2 * most) - most
        for h in range(size - most, most, -1):
            for w in range(size - most, most, -1):
                levels[h, w] = levels[h + moves[0, h, w], w + moves[1, h, w]]
    return blurred(levels / 255, sigma)


def along_a_line(x, radius, sigma, angle):
    out, total = np.zeros_like(x), 0.0
    rows, columns = np.indices(x.shape[:2])
    for i in range(2 * radius + 1):
        weight = math.exp(-(i**2) / (2 * sigma**2))
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        seen = (rows + down).clip(0, len(x) - 1), (columns + right).clip(0, len(x) - 1)
        out += weight * x[seen]
        total += weight
    return out / total


def motion_blur(x, c, key):
    return np.floor(255 * along_a_line(x, *c, -45 + 90 * drawn(uniform, key, 1)[0]) + 1e-6) / 255


def clipped_zoom(x, factor):
    size = len(x)
    cut = math.ceil(size / factor)
    top = (size - cut) // 2
    large = ndimage.zoom(x[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
    trim = (len(large) - size) // 2
    return large[trim : trim + size, trim : trim + size]


def zoom_blur(x, c, key):
    factors = np.arange(1, c[0], c[1])
    return (x + sum(clipped_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


# -- weather --------------------------------------------------------------------------------------


def snow(x, c, key):
    mean, deviation, factor, threshold, radius, sigma, keep = c
    layer = clipped_zoom(mean + deviation * drawn(normal, key.of("flakes"), *x.shape[:2])[..., None], factor)
    layer[layer < threshold] = 0
    layer = np.floor(255 * layer.clip(0, 1))
    layer = np.floor(along_a_line(layer, radius, sigma, -135 + 90 * drawn(uniform, key.of("wind"), 1)[0]) + 1e-6) / 255
    white = np.maximum(x, 1.5 * luminance(x)[..., None] + 0.5)
    return keep * x + (1 - keep) * white + layer + np.rot90(layer, k=2)


def frost(x, c, key, folder):
    a, b, scale = c
    number = 1 + int(drawn(integers, key.of("texture"), high=5))
    path = next(Path(folder).glob(f"frost{number}.*"))
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    height, width = round(len(picture) * scale), round(len(picture[0]) * scale)
    down, right = drawn(uniform, key.of("place"), 2)
    top, left = int(down * (height - len(x))), int(right * (width - len(x)))
    out = np.empty_like(x)
    for i in range(len(x)):
        for j in range(len(x)):
            places = [((at + 0.5) / scale - 0.5) for at in (top + i, left + j)]
            low = [min(max(math.floor(place), 0), side - 2) for place, side in zip(places, picture.shape, strict=False)]
            p, q = (place - below for place, below in zip(places, low, strict=True))
            (r, s) = low
            frosted = (1 - p) * ((1 - q) * picture[r, s] + q * picture[r, s + 1]) + p * (
                (1 - q) * picture[r + 1, s] + q * picture[r + 1, s + 1]
            )
            out[i, j] = a * x[i, j] + b * np.round(frosted) / 255
    return out


def fog(x, c, key):
    amount, decay = c
    size = 2 ** math.ceil(math.log2(len(x)))
    height = np.zeros((size, size))
    step, wibble = size, 100.0

    def noise(name):
        u = drawn(uniform, key.at(step).of(name), size // step, size // step)
        return wibble * (wibble * (2 * u - 1))

    while step >= 2:
        half, draws = step // 2, {name: noise(name) for name in ("squares", "rows", "columns")}
        for i in range(0, size, step):
            for j in range(0, size, step):
                corners = [height[(i + p) % size, (j + q) % size] for p in (0, step) for q in (0, step)]
                height[i + half, j + half] = sum(corners) / 4 + draws["squares"][i // step, j // step]
        for name, p, q in (("rows", 0, half), ("columns", half, 0)):
            for i in range(0, size, step):
                for j in range(0, size, step):
                    near = [(half, 0), (-half, 0), (0, half), (0, -half)]
                    four = [height[(i + p + a) % size, (j + q + b) % size] for a, b in near]
                    height[i + p, j + q] = sum(four) / 4 + draws[name][i // step, j // step]
        step, wibble = half, wibble / decay
    height = (height - height.min()) / (height.max() - height.min())
    most = x.max()
    return (x + amount * height[: len(x), : len(x), None]) * most / (most + amount)


def each_colour(x, change):
    flat = [change(*colorsys.rgb_to_hsv(*pixel)) for pixel in x.reshape(-1, 3)]
    return np.array([colorsys.hsv_to_rgb(*pixel) for pixel in flat]).reshape(x.shape)


def brightness(x, c, key):
    return each_colour(x, lambda h, s, v: (h, s, min(v + c, 1)))


# -- digital --------------------------------------------------------------------------------------


def contrast(x, c, key):
    mean = x.mean(axis=(0, 1))
    return (x - mean) * c + mean


def saturate(x, c, key):
    return each_colour(x, lambda h, s, v: (h, min(max(s * c[0] + c[1], 0), 1), v))


def pixelate(x, c, key):
    image, small = Image.fromarray(np.round(255 * x).astype(np.uint8)), int(len(x) * c)
    return np.asarray(image.resize((small, small), Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)) / 255


def jpeg_compression(x, c, key):
    file = io.BytesIO()
    Image.fromarray(np.round(255 * x).astype(np.uint8)).save(file, "JPEG", quality=c)
    return np.asarray(Image.open(file)) / 255


def elastic_transform(x, c, key):
    alpha, sigma, jitter = c
    size = len(x)
    centre, reach = size // 2, size // 3
    before = np.array([(reach, reach), (reach, -reach), (-reach, -reach)], dtype=float) + centre  # (column, row)
    after = before + jitter * (2 * drawn(uniform, key.of("corners"), 3, 2) - 1)
    # A maps (column, row, 1) of the image to the result; the result at q shows the image at A^-1 q
    forward = np.vstack(
        [np.column_stack([after, np.ones(3)]).T @ np.linalg.inv(np.column_stack([before, np.ones(3)]).T)]
    )
    back = np.linalg.inv(forward)
    field = 2 * drawn(uniform, key.of("field"), 2, size, size) - 1
    if sigma:
        field = np.stack([ndimage.gaussian_filter(one, sigma, mode="reflect", truncate=3) for one in field])
    rows, columns = np.indices((size, size)).astype(float)
    at = np.tensordot(back, np.stack([columns, rows, np.ones_like(rows)]), axes=1)
    turned = [ndimage.map_coordinates(x[..., c], [at[1], at[0]], order=1, mode="mirror") for c in range(3)]
    places = [rows + alpha * field[1], columns + alpha * field[0]]
    return np.stack([ndimage.map_coordinates(one, places, order=1, mode="reflect") for one in turned], axis=2)


def spatter(x, c, key):
    mean, deviation, sigma, threshold, amount, mud = c
    liquid = blurred(mean + deviation * drawn(normal, key, *x.shape[:2])[..., None], sigma)[..., 0]
    if mud:
        m = ndimage.gaussian_filter((liquid > threshold).astype(float), amount, mode="nearest")
        m[m < 0.8] = 0
        return x * (1 - m[..., None]) + m[..., None] * np.array([63, 42, 20]) / 255
    liquid[liquid < threshold] = 0
    depth = np.floor(255 * liquid)
    distance = np.full(depth.shape, 20.0)
    edges = np.argwhere(canny(depth))
    for i in range(len(x)):
        for j in range(len(x)):
            if len(edges):
                distance[i, j] = min(20.0, chamfer(*np.sort(np.abs(edges - (i, j)), axis=1).T).min())
    box = np.full((3, 3), 1 / 9)
    relief = np.floor(ndimage.correlate(distance, box, mode="mirror") + 1e-6).astype(int)
    values, counts = np.unique(relief, return_counts=True)
    if len(values) > 1:
        spread = np.round(255 * (counts.cumsum() - counts[0]) / counts[1:].sum())
        relief = np.array([spread[np.flatnonzero(values == value)[0]] for value in relief.ravel()]).reshape(
            relief.shape
        )
    lit = ndimage.correlate(relief.astype(float), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    light = depth * np.round(ndimage.correlate(lit.clip(0, 255), box, mode="mirror"))
    light = light / light.max() if light.any() else light
    return x + amount * light[..., None] * np.array([175, 238, 238]) / 255


def chamfer(least, most):
    """Moves of 1, 1.4 and 2.1969 pixels in closed form: knight's moves, and straight or diagonal ones for the rest."""
    flat = 2.1969 * least + (most - 2 * least)
    steep = 2.1969 * (most - least) + 1.4 * (2 * least - most)
    return np.where(most >= 2 * least, flat, steep)


def canny(levels):
    """Pixel by pixel: gradient, ridge across it, then a walk from strong edges along weak ones."""
    size = len(levels)
    near = np.pad(levels, 1, mode="edge")
    gx, gy = np.zeros((size, size)), np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            patch = near[i : i + 3, j : j + 3]
            gx[i, j] = (patch[:, 2] - patch[:, 0]) @ (1, 2, 1)
            gy[i, j] = (patch[2] - patch[0]) @ (1, 2, 1)
    strength = np.pad(np.abs(gx) + np.abs(gy), 1)
    kept = np.zeros((size, size), dtype=bool)
    for i in range(size):
        for j in range(size):
            here, steepness = strength[i + 1, j + 1], math.degrees(math.atan2(abs(gy[i, j]), abs(gx[i, j])))
            if here <= 50:
                continue
            if steepness < 22.5:
                kept[i, j] = here > strength[i + 1, j] and here >= strength[i + 1, j + 2]
            elif steepness > 67.5:
                kept[i, j] = here > strength[i, j + 1] and here >= strength[i + 2, j + 1]
            else:
                side = 1 if (gx[i, j] < 0) == (gy[i, j] < 0) else -1
                kept[i, j] = here > strength[i, j + 1 - side] and here > strength[i + 2, j + 1 + side]
    edges = kept & (strength[1:-1, 1:-1] > 150)
    walk = list(map(tuple, np.argwhere(edges)))
    while walk:
        i, j = walk.pop()
        for p in range(max(i - 1, 0), min(i + 2, size)):
            for q in range(max(j - 1, 0), min(j + 2, size)):
                if kept[p, q] and not edges[p, q]:
                    edges[p, q] = True
                    walk.append((p, q))
    return edges
