"""Convolutional stems in place of patch embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from robust_train.models.shapes import square
from robust_train.nouns import Edit, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.registry import edits

WIDE = 128  # ConvNeXt: first stages this wide (B and L) get a third convolution, narrower ones (T, S) two


@edits.register("convstem")
@dataclass(frozen=True)
class ConvStem(Edit):
    """3x3 convolutions in place of the patch embedding of a timm ViT or ConvNeXt (Singh et al. 2023, "CvSt").

    arXiv 2303.01870; for ViT after Xiao et al. 2021 (arXiv 2106.14881). Each convolution is followed by LayerNorm over
    channels and GELU. The new stem begins at random, also where the model's weights come from a file. Tokens keep their
    shape, and every other layer its name.

        ViT, D wide, patch 2^k    k convolutions of stride 2 (w, 2 w, 4 w, ... channels), then a 1x1 convolution to D
        ConvNeXt, D < 128         stride 2 to D / 2, stride 2 to D
        ConvNeXt, D >= 128        stride 2 to D / 2, stride 2 to 3 D / 4, stride 1 to D

    Published are ViT-S, M, B at patch 16 with w = 48, and ConvNeXt-T, S, B, L. Ours: k from another patch size, and
    w = D / 8 in ViTs narrower than 384.
    """

    width: int | None = None  # channels of a ViT's first convolution; null: 48, and D / 8 below D = 384

    examples = "- {width: 8}"

    def __post_init__(self) -> None:
        if self.width is not None and self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1: channels of the first convolution")

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        channels, _ = square(shape, self.use)
        name, patchify = _patchify(model)
        if name == "stem.0":
            model.set_submodule("stem", _convnext_stem(channels, patchify.out_channels))
        else:
            made = _vit_stem(channels, patchify.out_channels, patchify.kernel_size[0], self.width)
            model.set_submodule(name, made)


def _patchify(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """The convolution that cuts the image into patches, with its name."""
    for name in ("patch_embed.proj", "stem.0"):
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.Conv2d) and found.kernel_size == found.stride and found.kernel_size[0] > 1:
            side = found.kernel_size[0]
            if found.kernel_size != (side, side) or side & side - 1 or (name == "stem.0" and side != 4):
                raise ConfigError(
                    f"{type(model).__name__} has patches of {'x'.join(map(str, found.kernel_size))} pixels, and a "
                    "convolutional stem halves the image: choose patch_size 2, 4, 8, 16 or 32 (ConvNeXt: 4)."
                )
            return name, found
    raise ConfigError(
        f"{type(model).__name__} has no patch embedding for a convolutional stem to replace (patch_embed.proj of a "
        "ViT, stem of a ConvNeXt). Leave convstem out."
    )


def _vit_stem(channels: int, dim: int, patch: int, width: int | None) -> nn.Sequential:
    first = width or max(1, min(48, dim // 8))
    widths = [first * 2**index for index in range(int(math.log2(patch)))]
    layers = _convolutions(channels, widths, [2] * len(widths))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))


def _convnext_stem(channels: int, dim: int) -> nn.Sequential:
    if dim < WIDE:
        return nn.Sequential(*_convolutions(channels, [dim // 2, dim], [2, 2]))
    return nn.Sequential(*_convolutions(channels, [dim // 2, 3 * dim // 4, dim], [2, 2, 1]))


def _convolutions(channels: int, widths: list[int], strides: list[int]) -> list[nn.Module]:
    from timm.layers import LayerNorm2d

    layers: list[nn.Module] = []
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), LayerNorm2d(width, eps=1e-6), nn.GELU()]
        channels = width
    return layers
