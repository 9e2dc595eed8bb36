"""The small convolutional networks of the demo and of quick CIFAR runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from robust_train.models.shapes import square
from robust_train.nouns import Model, Shape
from robust_train.read.registry import models


@models.register("small-cnn")
@dataclass(frozen=True)
class SmallCNN(Model):
    """Four 3x3 convolutions with BatchNorm and ReLU, then one linear layer: the demo's network (150,378 weights)."""

    widths: tuple[int, ...] = (32, 64, 64, 128)  # channels of each convolution
    strides: tuple[int, ...] = (2, 2, 1, 2)  # stride of each convolution

    examples = "- {}"

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.strides):
            raise ValueError(
                f"{len(self.widths)} widths and {len(self.strides)} strides: give one stride a convolution"
            )

    def build(self, classes: int, shape: Shape) -> nn.Module:
        channels, size = square(shape, self.use)
        model = Chain()
        for index, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            block = nn.Sequential(
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            )
            model.add_module(f"block{index + 1}", block)
            channels, size = width, -(-size // stride)
        model.add_module("flatten", nn.Flatten())
        model.add_module("head", nn.Linear(channels * size * size, classes))
        return model

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"block{index + 1}" for index in range(len(self.widths)))


@models.register("small-resnet")
@dataclass(frozen=True)
class SmallResNet(Model):
    """A three-block pre-activation ResNet that trains on CIFAR-10 on one core (308,266 weights at 3 channels)."""

    widths: tuple[int, ...] = (32, 64, 128)  # channels of each block; every block but the first halves the image
    stem_stride: int = 2  # stride of the first convolution

    examples = "- {}"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        channels, _ = square(shape, self.use)
        width = self.widths[0]
        model = Chain()
        model.add_module("stem", nn.Conv2d(channels, width, 3, self.stem_stride, padding=1, bias=False))
        for index, wider in enumerate(self.widths):
            model.add_module(f"block{index + 1}", PreActivationBlock(width, wider, 1 if index == 0 else 2))
            width = wider
        model.add_module("norm", nn.BatchNorm2d(width))
        model.add_module("act", nn.ReLU())
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flatten", nn.Flatten())
        model.add_module("head", nn.Linear(width, classes))
        return model

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"block{index + 1}" for index in range(len(self.widths)))


class Chain(nn.Sequential):
    """Layers one after the other. Its forward is ours: the compiler passes over torch.nn's own and would cut there."""

    def forward(self, images: Tensor) -> Tensor:
        for layer in self:
            images = layer(images)
        return images


class PreActivationBlock(nn.Module):
    """x + conv(drop(relu(bn(conv(relu(bn(x))))))), with a 1x1 shortcut of the activated input where the shape changes.

    He et al. 2016 (arXiv 1603.05027); dropout as Zagoruyko & Komodakis 2016 have it.
    """

    def __init__(self, width: int, wider: int, stride: int, drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, wider, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, padding=1, bias=False)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.drop = nn.Dropout(drop)
        changes = stride != 1 or width != wider
        self.shortcut = nn.Conv2d(width, wider, 1, stride, bias=False) if changes else None

    def forward(self, images: Tensor) -> Tensor:
        active = self.act1(self.norm1(images))
        straight = images if self.shortcut is None else self.shortcut(active)
        return straight + self.conv2(self.drop(self.act2(self.norm2(self.conv1(active)))))
