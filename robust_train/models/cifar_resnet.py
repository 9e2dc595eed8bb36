"""Residual networks for small images: 3x3 stem of stride 1, no max-pool, pre-activation blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robust_train.models.shapes import square
from robust_train.models.small_cnn import Chain, PreActivationBlock
from robust_train.nouns import Model, Shape
from robust_train.read.registry import models

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@models.register("preact-resnet")
@dataclass(frozen=True)
class PreActResNet(Model):
    """PreActResNet-18, 34 or 50 for small images, the network of many CIFAR papers (He et al. 2016).

    arXiv 1603.05027, with ImageNet's widths (64 to 512) on 32x32 pixels, BatchNorm and ReLU before the pooling.
    PreActResNet-18 has 11,172,170 weights for 10 classes, initialised as PyTorch does.
    """

    depth: Literal[18, 34, 50] = 18  # layers with weights; 50 has bottleneck blocks

    examples = "- {}"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        channels, _ = square(shape, self.use)
        model = Chain()
        model.add_module("stem", nn.Conv2d(channels, 64, 3, padding=1, bias=False))
        width = 64
        for index, blocks in enumerate(BLOCKS[self.depth]):
            inner, stride = 64 * 2**index, 1 if index == 0 else 2
            stage = nn.Sequential()
            for block in range(blocks):
                step = stride if block == 0 else 1
                if self.depth == 50:
                    stage.append(PreActivationBottleneck(width, inner, step))
                    width = 4 * inner
                else:
                    stage.append(PreActivationBlock(width, inner, step))
                    width = inner
            model.add_module(f"layer{index + 1}", stage)
        return _headed(model, width, classes)

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"layer{index + 1}" for index in range(4))


@models.register("wide-resnet")
@dataclass(frozen=True)
class WideResNet(Model):
    """WideResNet-d-w for small images, e.g. WRN-28-10 and WRN-34-10 (Zagoruyko & Komodakis 2016).

    arXiv 1605.07146: three groups of (depth - 4) / 6 pre-activation blocks, 16 w, 32 w and 64 w channels wide.
    36,479,194 weights at 28-10, 46,160,474 at 34-10, for 10 classes. Convolutions ~ N(0, 2 / fan-out), the classifier's
    bias 0.
    """

    depth: int = 28  # layers with weights: 6 n + 4
    width: int = 10  # the widening factor w
    drop_rate: float = 0.0  # dropout between the convolutions of a block

    examples = "- {depth: 10, width: 2}"

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            near = max(1, round((self.depth - 4) / 6)) * 6 + 4
            raise ValueError(f"depth={self.depth} is not 6 n + 4 (10, 16, 22, 28, 34, ...); the nearest is {near}")
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1: it multiplies the channels")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate={self.drop_rate:g} is not in [0, 1): it is a probability")

    def build(self, classes: int, shape: Shape) -> nn.Module:
        channels, _ = square(shape, self.use)
        model = Chain()
        model.add_module("stem", nn.Conv2d(channels, 16, 3, padding=1, bias=False))
        width = 16
        for index in range(3):
            wider = 16 * self.width * 2**index
            stage = nn.Sequential()
            for block in range((self.depth - 4) // 6):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(PreActivationBlock(width, wider, stride, self.drop_rate))
                width = wider
            model.add_module(f"block{index + 1}", stage)
        _headed(model, width, classes)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(model.get_parameter("head.bias"))
        return model

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"block{index + 1}" for index in range(3))


class PreActivationBottleneck(nn.Module):
    """x + conv1(a3 conv3(a2 conv1(a1 x))) with a = relu(bn(.)) and four times the inner width at the end.

    conv1 and conv3 are 1x1 and 3x3; a 1x1 shortcut of the activated input where the shape changes.
    """

    def __init__(self, width: int, inner: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.act1 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.norm2, self.act2 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm3, self.act3 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        changes = stride != 1 or width != 4 * inner
        self.shortcut = nn.Conv2d(width, 4 * inner, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.norm1(x))
        straight = x if self.shortcut is None else self.shortcut(active)
        y = self.conv2(self.act2(self.norm2(self.conv1(active))))
        return straight + self.conv3(self.act3(self.norm3(y)))


def _headed(model: Chain, width: int, classes: int) -> Chain:
    """The model with the last norm, the mean over places, and the classifier."""
    model.add_module("norm", nn.BatchNorm2d(width))
    model.add_module("act", nn.ReLU())
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(width, classes))
    return model
