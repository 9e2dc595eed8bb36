"""From a file's bytes to an image of the size that a network takes."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robust_train.data.files.folders import FORMATS
from robust_train.nouns import Extra

if TYPE_CHECKING:
    from PIL.Image import Image


class Undecodable(Exception):
    """An image file that cannot be decoded: the sample is broken."""


def decode(file: bytes, channels: int) -> Image:
    """A PIL image in mode L (one channel) or RGB (three); of several frames the first.

    Grey of more than 8 bits is scaled: round(255 v / most), where most is 65535, or what a TIFF says its bits hold.
    Undecodable where the file is damaged, no image, of numbers without a known range, or of more than 179 million
    pixels (Pillow's limit).
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=_formats()) as image:
            return _eight_bits(image).convert("L" if channels == 1 else "RGB")
    except (
        Exception
    ) as error:  # PIL's plugins raise anything on damaged files: struct.error, IndexError, SyntaxError, ...
        raise Undecodable(f"{type(error).__name__}: {error}".split(" <_io")[0]) from error


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this build of Pillow reads."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _eight_bits(image: Image) -> Image:
    """Grey of 9 to 16 bits brought to 8; other images as they are. `convert` would cut it: all above 255 white."""
    if not image.mode.startswith(("I", "F")):
        return image
    from PIL import Image as pil

    tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
    bits = tags.get(258, (16,))[0]
    if image.mode == "F" or bits > 16:
        raise Undecodable(f"holds {'fractions' if image.mode == 'F' else f'{bits}-bit numbers'} of no known range")
    values = np.asarray(image).astype(np.int64)
    most = (1 << bits) - 1
    grey = ((values.clip(0, most) * 510 + most) // (2 * most)).astype(np.uint8)
    return pil.fromarray(255 - grey if tags.get(262) == 0 else grey)  # 0: the least number is white


def numbers(file: bytes, said: Extra) -> Tensor:
    """What an .npy file holds, float32 or int64. Undecodable where it is damaged or holds something else."""
    stream = io.BytesIO(file)
    try:
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            np.lib.format.read_magic(stream), np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(stream)
        if shape != tuple(said.shape) or kind.kind not in ("iub" if said.whole else "fiub"):
            wanted = f"{'whole ' if said.whole else ''}numbers {list(said.shape)}"
            raise Undecodable(f"holds {kind} {list(shape)}, not {wanted}")  # before so much memory is asked for
        stream.seek(0)
        found = np.load(stream, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Undecodable(f"cannot be read ({type(error).__name__}: {error})") from error
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
