"""Images that say which sample they are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

CLASSES = 7
SIZE = 4


def picture(number: int) -> bytes:
    """A grey 4x4 PNG: the sample's number in its first two pixels (base 256), a ramp elsewhere."""
    pixels = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
    pixels[0, 0], pixels[0, 1] = number // 256, number % 256
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def number_of(images: Tensor) -> list[int]:
    """The samples that images [B, 1, 4, 4] show."""
    return (images[:, 0, 0, 0].int() * 256 + images[:, 0, 0, 1].int()).tolist()


def label_of(number: int) -> int:
    return number * 3 % CLASSES
