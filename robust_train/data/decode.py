"""From a file's bytes to an image of the size that a network takes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robust_train.nouns import Extra

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


def numbers(file: bytes, said: Extra) -> Tensor:
    """What an .npy file holds, float32 or int64. Undecodable where it is damaged or holds something else."""
    try:
        found = np.load(io.BytesIO(file), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Undecodable(f"cannot be read ({type(error).__name__}: {error})") from error
    if found.shape != tuple(said.shape) or found.dtype.kind not in ("iub" if said.whole else "fiub"):
        wanted = f"{'whole ' if said.whole else ''}numbers {list(said.shape)}"
        raise Undecodable(f"holds {found.dtype} {list(found.shape)}, not {wanted}")
    return torch.from_numpy(found.astype(np.int64 if said.whole else np.float32))


def fit(image: Image, size: int, crop: float, bilinear: bool = False) -> Image:
    """The image as evaluation sees it, size x size: as it is where it has that size already, else `centred`."""
    return image if image.size == (size, size) else centred(image, size, crop, bilinear)


def centred(image: Image, size: int, crop: float, bilinear: bool = False) -> Image:
    """The short side resized to floor(size / crop), bicubic or bilinear, and the middle size x size cut out.

    To the pixel what timm's evaluation does, so that published accuracies are met: the long side is truncated, and half
    a pixel of margin goes to the even side.
    """
    from PIL import Image as pil

    short = int(size / crop)
    width, height = image.size
    small = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if small != image.size:
        image = image.resize(small, pil.Resampling.BILINEAR if bilinear else pil.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in small)
    return image.crop((left, top, left + size, top + size))


def pixels(image: Image) -> Tensor:
    """uint8 [C, H, W]."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
