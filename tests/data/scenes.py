"""Small coloured scenes, and frost textures of our own making."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def scenes(size: int, count: int = 2, channels: int = 3) -> Tensor:
    """uint8 [count, channels, size, size]: smooth colours, a bright bar, a black one, a grey patch; none white."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, channels, 7, 7, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    third = size // 3
    image[:, :, third : third + 2, :] = 1
    image[:, :, :, 2 * third] = 0
    image[:, :, -third:, :third] = 0.5
    return (230 * image).to(torch.uint8)


def write_frost(folder: Path) -> Path:
    """frost1 to frost5 in a folder: noise in three formats and two shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for number, ending in enumerate(("png", "webp", "png", "jpg", "jpg"), 1):
        pixels = draws.integers(0, 256, (300 + 7 * number, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(
            folder / f"frost{number}.{ending}", **({"lossless": True} if ending == "webp" else {})
        )
    return folder
