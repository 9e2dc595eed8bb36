"""Contrast, elastic transform, pixels, JPEG and saturation."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import torch

from robust_train.data.corruptions.weather import grey
from robust_train.keyed import Key, uniform


def contrast(x: np.ndarray, c: float, key: Key) -> np.ndarray:
    """c (x - mean) + mean, the mean of each channel over the pixels."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    return (x - mean) * c + mean


def saturate(x: np.ndarray, c: tuple[float, float], key: Key) -> np.ndarray:
    """The saturation of HSV, S = 1 - min / max, becomes clip(a S + b, 0, 1); c = (a, b). Hue and value stay.

    With V = max(R, G, B) every channel is V - (V - x) S' / S. Greys have no hue: they turn towards red, hue 0, where
    b > 0. Of grey images the result's luminance is taken.
    """
    a, b = c
    colour = np.repeat(x, 3, axis=1) if x.shape[1] == 1 else x
    value = colour.max(axis=1, keepdims=True)
    fall = value - colour.min(axis=1, keepdims=True)
    saturation = fall / np.where(value > 0, value, 1)
    wanted = (a * saturation + b).clip(0, 1)
    grown = value - (value - colour) * wanted / np.where(saturation > 0, saturation, 1)
    red = value * np.concatenate([np.ones_like(wanted), 1 - wanted, 1 - wanted], axis=1)
    out = np.where(fall > 0, grown, red)
    return grey(out) if x.shape[1] == 1 else out


def pixelate(x: np.ndarray, c: float, key: Key) -> np.ndarray:
    """Made smaller to floor(c size) pixels and larger again, each pixel the mean of the area it covers."""
    from PIL.Image import Resampling

    size = x.shape[-1]
    small = int(size * c)
    images = (image.resize((small, small), Resampling.BOX) for image in _images(x))
    return _array([image.resize((size, size), Resampling.BOX) for image in images])


def jpeg(x: np.ndarray, quality: int, key: Key) -> np.ndarray:
    """Through a JPEG file of a quality (libjpeg's scale, colours at half the resolution)."""
    from PIL import Image

    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _array([through(image) for image in _images(x)])


def elastic(x: np.ndarray, c: tuple[float, float, float], key: Key) -> np.ndarray:
    """A random affine map, then every pixel from a place moved by a smooth random field; c = (alpha, sigma, jitter).

    Affine: three of the corners of a square about the centre (side 2 floor(size / 3)) go where they are moved by
    U(-jitter, jitter); the border is mirrored at its pixels' centres. Field: alpha times U(-1, 1) smoothed by a
    Gaussian of `sigma` pixels, cut at 3 sigma; the border is mirrored at its edge. Both interpolate linearly.
    """
    from scipy.ndimage import map_coordinates

    alpha, sigma, jitter = c
    size = x.shape[-1]
    moves = jitter * (2 * uniform(key.of("corners"), (len(x), 3, 2), dtype=torch.float64).numpy() - 1)
    field = 2 * uniform(key.of("field"), (len(x), 2, size, size), dtype=torch.float64).numpy() - 1
    smoother = gaussian_matrix(size, sigma)
    field = alpha * (smoother @ field @ smoother.T)
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    out = np.empty_like(x)
    for image, made, move, (across, down) in zip(x, out, moves, field, strict=True):
        back = affine_back(size, move)
        from_columns, from_rows = np.einsum("ij,jhw->ihw", back, np.stack([columns, rows, np.ones_like(rows)]))
        for band, result in zip(image, made, strict=True):
            turned = map_coordinates(band, [from_rows, from_columns], order=1, mode="mirror")
            map_coordinates(turned, [rows + down, columns + across], output=result, order=1, mode="reflect")
    return out


def affine_back(size: int, moves: np.ndarray) -> np.ndarray:
    """[2, 3]: from a place (column, row, 1) of the result to the place in the image that stands there.

    moves [3, 2]: of the corners, in pixels (column, row).
    """
    centre, reach = size // 2, size // 3
    corners = np.array(
        [[centre + reach, centre + reach], [centre + reach, centre - reach], [centre - reach, centre - reach]]
    )
    return np.linalg.solve(np.column_stack([corners + moves, np.ones(3)]), corners.astype(float)).T


@lru_cache(maxsize=16)
def gaussian_matrix(size: int, sigma: float) -> np.ndarray:
    """[size, size]: a vector's convolution with a Gaussian cut at 3 sigma, mirrored at its edges.

    As a matrix because sigma may be as large as the image: one product for any sigma.
    """
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3) if sigma else np.eye(size)


def _images(x: np.ndarray) -> list:
    """As PIL has them."""
    from PIL import Image

    levels = np.rint(255 * x).astype(np.uint8)
    return [
        Image.fromarray(one[0] if len(one) == 1 else np.ascontiguousarray(one.transpose(1, 2, 0))) for one in levels
    ]


def _array(images: list) -> np.ndarray:
    """[B, C, H, W] in [0, 1] of PIL's images."""
    stacked = np.stack([np.asarray(image, dtype=float) for image in images]) / 255
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)
