"""ImageNet with twelve classes: label files, images of one grey each, and a network that answers by the grey."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

SYNSETS = [f"n{10 * label:08d}" for label in range(12)]
NAMES = [f"thing {label}, kind of thing" for label in range(12)]
A, R = (1, 4, 7), (1, 5)
REAL = [[3], [], [11, 2], [0]]


def write_labels(folder: Path) -> str:
    """The files of timm's names, for twelve classes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "imagenet_synsets.txt": "\n".join(SYNSETS),
        "imagenet_class_index.json": json.dumps(
            {str(i): pair for i, pair in enumerate(zip(SYNSETS, NAMES, strict=True))}
        ),
        "imagenet_a_indices.txt": "\n".join(map(str, A)),
        "imagenet_r_indices.txt": "\n".join(map(str, R)),
        "imagenet_real_labels.json": json.dumps(REAL),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def grey(level: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    """An image of one grey."""
    return Image.new("RGB", size, (level, level, level))


def png(image: Image.Image) -> bytes:
    """Its bytes, lossless."""
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def write_images(folder: Path, images: Mapping[str, int | Image.Image]) -> str:
    """Images by their names below a folder; a number is a grey."""
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(grey(image) if isinstance(image, int) else image))
    return str(folder)


def ranking(*labels: int, classes: int = 12) -> list[float]:
    """Logits whose largest is the first of `labels`, the next largest the second, and so on."""
    logits = [0.0] * classes
    for place, label in enumerate(labels):
        logits[label] = 10.0 - place
    return logits


class Oracle(nn.Module):
    """To an image of grey k, the k-th row of logits."""

    def __init__(self, rows: Iterable[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(list(rows))
        self.classes = self.rows.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[(images[:, 0, 0, 0] * 255).round().long()]
