"""Front ends: what stands in place of a model's stem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robust_train.models.shapes import square
from robust_train.nouns import Edit, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.registry import edits

VIT_WIDTH = 64  # channels between a front end and a ViT's patches: what ResNets have there


class FrontEnd(Edit, ABC):
    """In place of a model's stem, with as many feature maps: [B, channels, H, W] to [B, width, H / s, W / s]."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Middle grey is 0."""
        return (0.5,)

    @property
    def std(self) -> tuple[float, ...]:
        """Pixels reach from -1 to 1."""
        return (0.5,)

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        mount(model, self, shape)

    @abstractmethod
    def build(self, shape: Shape, width: int) -> nn.Module:
        """The module, with `width` feature maps; what of it is trained begins at random."""

    @property
    @abstractmethod
    def step(self) -> int:
        """s: pixels between two places of its feature maps."""


@edits.register("conv")
@dataclass(frozen=True)
class ConvFront(FrontEnd):
    """A convolution, BatchNorm, ReLU and max-pooling, all trained: a usual stem of another geometry, as a control.

    At 64 pixels ResNets without V1 take `ksize: 7, stride: 1, pool: 2`, so that both give a place every 2 pixels.
    """

    ksize: int = 7  # side of the kernels in pixels, odd
    stride: int = 1  # of the convolution
    pool: int = 2  # stride of the 3x3 max-pooling; 1: none

    examples = "- {ksize: 3, pool: 1}"

    def __post_init__(self) -> None:
        if self.ksize < 1 or self.ksize % 2 == 0:
            raise ValueError(f"ksize={self.ksize} must be odd: a kernel has a centre")
        if self.stride < 1 or self.pool < 1:
            raise ValueError(f"stride={self.stride} and pool={self.pool} must be at least 1")

    @property
    def step(self) -> int:
        return self.stride * self.pool

    def build(self, shape: Shape, width: int) -> nn.Module:
        conv = nn.Conv2d(shape[0], width, self.ksize, self.stride, self.ksize // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        pool = nn.MaxPool2d(3, self.pool, 1) if self.pool > 1 else nn.Identity()
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), act=nn.ReLU(), pool=pool))


@dataclass(frozen=True)
class Stem:
    """Where the stem of a model is: one layer that a front end replaces, and those that end with it."""

    name: str  # of the layer replaced
    width: int  # feature maps that the next layer takes
    ended: tuple[str, ...] = ()  # layers that do nothing afterwards: norm, activation and pooling of the stem
    patch: int = 0  # side of a ViT's patches, which a convolution goes on to make; 0: no ViT


def mount(model: nn.Module, front: FrontEnd, shape: Shape) -> str:
    """Put a front end in place of the stem of `model`, in place; the name under which it stands.

    All other layers keep their names, so weights of them still load. ConfigError for a model without a known stem, or
    one that does not take what the front end gives.
    """
    _, size = square(shape, front.use)
    stem = find_stem(model)
    if stem.patch and stem.patch % front.step:
        raise ConfigError(
            f"a place every {front.step} pixels does not divide patches of {stem.patch} pixels; "
            "choose another stride, or another patch_size"
        )
    made = front.build(shape, VIT_WIDTH if stem.patch else stem.width)
    if stem.patch:
        side = stem.patch // front.step
        made = nn.Sequential(made, nn.Conv2d(VIT_WIDTH, stem.width, side, side))
    model.set_submodule(stem.name, made)
    for name in stem.ended:
        model.set_submodule(name, nn.Identity())
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} does not take its feature maps at {size} pixels ({reason}). "
            "Choose another stride, data.size or model."
        ) from error
    model.train(training)
    return stem.name


def find_stem(model: nn.Module) -> Stem:
    """The stem of a timm ResNet, EfficientNet, MobileNet, ConvNeXt, ViT, or of our own small models."""
    for known in _STEMS:
        found = known(model)
        if found is not None:
            return found
    raise ConfigError(
        f"{type(model).__name__} has no stem that a front end can replace: it is done for ResNets "
        "(conv1, bn1, maxpool), EfficientNets (conv_stem), ConvNeXts (stem.0), ViTs (patch_embed.proj), small-cnn, "
        "small-resnet and the CIFAR ResNets"
    )


def _resnet(model: Any) -> Stem | None:
    if not all(hasattr(model, name) for name in ("conv1", "bn1", "maxpool", "layer1")):
        return None
    ended = ("bn1", *(("act1",) if hasattr(model, "act1") else ()), "maxpool")
    return Stem("conv1", model.bn1.num_features, ended)


def _efficientnet(model: Any) -> Stem | None:
    if not isinstance(getattr(model, "conv_stem", None), nn.Conv2d) or not hasattr(model, "bn1"):
        return None
    return Stem("conv_stem", model.conv_stem.out_channels, ("bn1",))


def _vit(model: Any) -> Stem | None:
    proj = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(proj, nn.Conv2d) or proj.kernel_size != proj.stride or len(set(proj.kernel_size)) != 1:
        return None
    return Stem("patch_embed.proj", proj.out_channels, patch=proj.kernel_size[0])


def _sequential(model: Any) -> Stem | None:
    """ConvNeXt's stem.0; `stem` of small-resnet and the CIFAR ResNets; block1 of small-cnn."""
    stem = getattr(model, "stem", None)
    if isinstance(stem, nn.Conv2d):
        ended = ("stem_norm", "stem_act")
        return Stem("stem", stem.out_channels, tuple(name for name in ended if hasattr(model, name)))
    if isinstance(stem, nn.Sequential) and len(stem) <= 2 and "0" in stem._modules and isinstance(stem[0], nn.Conv2d):
        return Stem("stem.0", stem[0].out_channels)
    first = getattr(model, "block1", None)
    if isinstance(first, nn.Sequential) and isinstance(first[0], nn.Conv2d):
        return Stem("block1", first[0].out_channels)
    return None


_STEMS: tuple[Callable[[Any], Stem | None], ...] = (_resnet, _efficientnet, _vit, _sequential)
