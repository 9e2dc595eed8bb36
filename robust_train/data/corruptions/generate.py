"""From images to corrupted images, each a function of (image, corruption, severity, key, sample) alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_train.data.corruptions import blur, digital, noise, spatter, weather
from robust_train.data.corruptions.benchmark import parameters
from robust_train.data.corruptions.blur import HAIR
from robust_train.keyed import Key
from robust_train.keyed.draws import rows_of

VALUES = 2**22  # pixel values that are worked on at a time: bounds the memory, never the result

Made = Callable[..., np.ndarray]
"""Images [B, C, H, W] in [0, 1], float64; a severity's parameters; a key with B rows -> images, not yet clipped."""

_MADE: dict[str, Made] = {
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "speckle_noise": noise.speckle,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
    "gaussian_blur": blur.gaussian,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "spatter": spatter.spatter,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg,
    "saturate": digital.saturate,
}


def corrupt(
    images: Tensor, name: str, severity: int, key: Key, frost: str | Path | None = None, hdri: bool = False
) -> Tensor:
    """Images uint8 [B, C, H, W] (C 1 or 3; 224, 64 or 32 pixels square) corrupted, uint8, on the device they came on.

        floor(255 clip(corrupted(k / 255), 0, 1))

    key: its rows are the samples' identities, so that every network sees the same pixels, whatever the chunk. Computed
    on the CPU in float64: the device decides nothing. frost: the folder of the textures, for `frost` alone. hdri: round
    the grey levels of motion blur and snow as ImageMagick's HDRI builds do, where its common ones cut them off. Raises
    ConfigError for a name, severity or size that does not exist, or frost without a folder.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {list(images.shape)} are not uint8 [B, 1 or 3, H, W]")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images {list(images.shape)} are not square: corruptions are defined for square ones")
    c = parameters(name, images.shape[-1], severity)
    own: dict[str, dict[str, Any]] = {"frost": {"folder": frost}, "motion_blur": {"hdri": hdri}, "snow": {"hdri": hdri}}
    made = partial(_MADE[name], **own.get(name, {}))
    drawn = key.of(name).at(severity).rows(rows_of(key, len(images), "cpu"))
    out = torch.empty_like(images, device="cpu")
    for rows in torch.arange(len(images)).split(max(1, VALUES // images[0].numel())) if len(images) else ():
        x = images[rows.to(images.device)].cpu().numpy() / 255
        out[rows] = torch.from_numpy(levels(made(x, c, drawn[rows])))
    return out.to(images.device)


def levels(x: np.ndarray) -> np.ndarray:
    """Grey levels uint8: fractions are cut off, as the files of the benchmark had it."""
    return np.floor(255 * x.clip(0, 1) + HAIR).astype(np.uint8)
