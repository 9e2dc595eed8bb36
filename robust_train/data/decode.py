"""From a file's bytes to an image of the size that a network takes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


class Undecodable(Exception):
    """An image file that cannot be decoded: the sample is broken."""


def decode(file: bytes, channels: int) -> Image:
    """A PIL image in mode L (one channel) or RGB (three). Undecodable where the file is damaged or no image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file)) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except (
        Exception
    ) as error:  # PIL's plugins raise anything on damaged files: struct.error, IndexError, SyntaxError, ...
        raise Undecodable(f"{type(error).__name__}: {error}".split(" <_io")[0]) from error


def fit(image: Image, size: int, crop: float) -> Image:
    """The image as evaluation sees it, size x size: as it is where it has that size already.

    Else the short side is resized to round(size / crop) (bicubic) and the middle is cut out.
    """
    from PIL import Image as pil

    if image.size == (size, size):
        return image
    short = max(size, round(size / crop))
    width, height = image.size
    scale = short / min(width, height)
    width, height = max(short, round(width * scale)), max(short, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), pil.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def pixels(image: Image) -> Tensor:
    """uint8 [C, H, W]."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
