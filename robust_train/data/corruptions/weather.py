"""Snow, frost, fog and brightness."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from robust_train.data.corruptions.blur import drawn_out, enlarged, whole
from robust_train.keyed import Key, integers, normal, uniform
from robust_train.read.errors import ConfigError, DataError

LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TEXTURES = ("frost1", "frost2", "frost3", "frost4", "frost5")  # a sixth exists, which the generators never drew
FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def grey(x: np.ndarray) -> np.ndarray:
    """Luminance [B, 1, H, W] of [B, C, H, W]."""
    return x if x.shape[1] == 1 else np.einsum("bchw,c->bhw", x, LUMINANCE)[:, None]


def snow(x: np.ndarray, c: tuple[float, ...], key: Key, hdri: bool = False) -> np.ndarray:
    """Flakes drawn out by the wind, the same turned by 180 degrees, and a whitened image.

        b x + (1 - b) max(x, 3/2 grey(x) + 1/2) + s + rot180(s)

    c = (mean, deviation, enlargement and threshold of the Gaussian field s; radius and sigma of its motion blur; b).
    The angle is U(-135, -45) degrees; s has 8 bits, before and after the blur.
    """
    mean, deviation, factor, threshold, radius, sigma, b = c
    size = x.shape[-1]
    flakes = enlarged(
        mean + deviation * normal(key.of("flakes"), (len(x), size, size), dtype=torch.float64).numpy(), factor
    )
    flakes = np.floor(255 * np.where(flakes < threshold, 0, flakes).clip(0, 1))
    angles = -135 + 90 * uniform(key.of("wind"), (len(x), 1), dtype=torch.float64).numpy()[:, 0]
    layer = whole(drawn_out(flakes, int(radius), sigma, angles), hdri)[:, None] / 255
    whitened = b * x + (1 - b) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return whitened + layer + layer[..., ::-1, ::-1]


def frost(x: np.ndarray, c: tuple[float, float, float], key: Key, folder: str | Path | None) -> np.ndarray:
    """a x + b frost, c = (a, b, scale): a random cut of one of five photographs, made smaller by `scale`.

    folder: holds frost1 to frost5 as .png, .jpg or .webp. Raises ConfigError without a folder, DataError where a
    texture is absent, damaged or too small.
    """
    a, b, scale = c
    if folder is None:
        raise ConfigError(
            "frost needs textures: name a folder that holds frost1 to frost5 (.png, .jpg or .webp), such as "
            "ImageNet-C/imagenet_c/imagenet_c/frost of github.com/hendrycks/robustness, or leave frost out"
        )
    size = x.shape[-1]
    chosen = integers(key.of("texture"), (len(x), 1), len(TEXTURES)).flatten().tolist()
    places = uniform(key.of("place"), (len(x), 2), dtype=torch.float64).tolist()
    out = np.empty_like(x)
    for image, made, number, place in zip(x, out, chosen, places, strict=True):
        picture = texture(str(folder), TEXTURES[number], scale)
        room = [side - size for side in picture.shape[1:]]
        if min(room) < 1:
            raise DataError(
                f"{folder}: {TEXTURES[number]} has {picture.shape[2]}x{picture.shape[1]} pixels at scale {scale:g}, "
                f"too few for images of {size}: put a larger picture there"
            )
        top, left = (int(u * most) for u, most in zip(place, room, strict=True))
        cut = picture[None, :, top : top + size, left : left + size]
        made[...] = a * image + b * (cut if len(image) == 3 else grey(cut))[0]
    return out


@lru_cache(maxsize=16)
def texture(folder: str, name: str, scale: float) -> np.ndarray:
    """[3, H, W] in [0, 1], whole grey levels: a picture at `scale`, bilinear at pixels' centres, without smoothing."""
    from PIL import Image, UnidentifiedImageError
    from scipy.ndimage import map_coordinates

    found = [Path(folder, name + ending) for ending in FORMATS if Path(folder, name + ending).is_file()]
    if not found:
        raise DataError(f"{folder} holds no {name} ({', '.join(FORMATS)}): frost needs {', '.join(TEXTURES)}")
    try:
        with Image.open(found[0]) as image:
            picture = np.asarray(image.convert("RGB"), dtype=float).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{found[0]} cannot be read as an image ({error}): copy the texture anew") from error
    if scale != 1:
        sides = [(np.arange(round(side * scale)) + 0.5) / scale - 0.5 for side in picture.shape[1:]]
        places = np.meshgrid(*sides, indexing="ij")
        picture = np.rint(np.stack([map_coordinates(band, places, order=1, mode="nearest") for band in picture]))
    return picture / 255


def fog(x: np.ndarray, c: tuple[float, float], key: Key) -> np.ndarray:
    """(x + a fog) m / (m + a), m the image's largest value; c = (a, decay of the fog's roughness with its scale)."""
    a, decay = c
    size = x.shape[-1]
    most = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + a * plasma(len(x), size, decay, key)[:, None, :size, :size]) * most / (most + a)


def plasma(count: int, size: int, decay: float, key: Key) -> np.ndarray:
    """[count, S, S] in [0, 1], S the least power of two from `size` on: the diamond-square fractal on a torus.

    From the side down to 2, the middle of each square of step s becomes the mean of its corners plus w U(-w, w); then
    the middles of its sides the mean of their four neighbours plus the like. w is 100 at first, divided by `decay` with
    each halving of s.
    """
    side = 1 << (size - 1).bit_length()
    heights = np.zeros((count, side, side))
    step, wibble = side, 100.0

    def mean_of(total: np.ndarray, name: str) -> np.ndarray:
        u = uniform(key.at(step).of(name), total.shape, dtype=torch.float64).numpy()
        return total / 4 + wibble * wibble * (2 * u - 1)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, half::step] = mean_of(pairs + np.roll(pairs, -1, axis=2), "squares")
        middles = heights[:, half::step, half::step]
        beside = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        heights[:, ::step, half::step] = mean_of(beside, "rows")
        beside = middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, ::step] = mean_of(beside, "columns")
        step, wibble = half, wibble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def brightness(x: np.ndarray, c: float, key: Key) -> np.ndarray:
    """c added to the value of HSV, V = max(R, G, B): hue and saturation stay, so the colour is scaled by V' / V.

    Black, which has no hue, becomes grey.
    """
    value = x.max(axis=1, keepdims=True)
    brighter = (value + c).clip(0, 1)
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)
