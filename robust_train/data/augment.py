"""What is done to each training image alone. All of it is drawn from generators seeded for that image."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from robust_train.data.decode import fit, pixels
from robust_train.nouns import Augmentation
from robust_train.read.registry import augmentations
from robust_train.vision import ensure_torchvision_importable

if TYPE_CHECKING:
    from PIL.Image import Image

Augmented = Callable[["Image"], Tensor]
"""A PIL image to uint8 [C, size, size]; draws from the global generators of Python, NumPy and PyTorch."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as timm has them


class ImageAugmentation(Augmentation, ABC):
    """An augmentation of single images, built from timm's and torchvision's transforms."""

    @abstractmethod
    def build(self, size: int, channels: int, crop: float) -> Augmented:
        """The transform to `size` x `size`; `crop` is how evaluation fits images of another size."""


@lru_cache(maxsize=8)
def built(augmentation: ImageAugmentation, size: int, channels: int, crop: float) -> Augmented:
    """The transform of an augmentation, built once a process."""
    return augmentation.build(size, channels, crop)


@augmentations.register("none")
@dataclass(frozen=True)
class NoAugmentation(ImageAugmentation):
    """Nothing: images as evaluation sees them."""

    examples = "- {}"

    def build(self, size: int, channels: int, crop: float) -> Augmented:
        return lambda image: pixels(fit(image, size, crop))


@augmentations.register("crop-flip")
@dataclass(frozen=True)
class CropFlip(ImageAugmentation):
    """A random crop of the zero-padded image, then a random mirror: CIFAR's usual recipe."""

    pad: int = 4  # pixels of zeros on each side
    flip: float = 0.5  # probability of the mirror image; 0 for digits and the like

    examples = """
    - {}
    - {pad: 1, flip: 0.0}
    """

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad={self.pad} must not be negative: it is a number of pixels")
        _check_probability("flip", self.flip)

    def build(self, size: int, channels: int, crop: float) -> Augmented:
        def augmented(image: Image) -> Tensor:
            padded = torch.nn.functional.pad(pixels(fit(image, size, crop)), [self.pad] * 4)
            top, left = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
            cut = padded[:, top : top + size, left : left + size]
            return cut.flip(2) if random.random() < self.flip else cut

        return augmented


@augmentations.register("affine-flip")
@dataclass(frozen=True)
class AffineFlip(ImageAugmentation):
    """A random rotation, shift and enlargement, black where nothing is left to show, then a random mirror; no crop."""

    degrees: float = 30.0  # largest rotation either way
    shift: float = 0.05  # largest shift either way, as a share of the side
    scale: tuple[float, float] = (1.0, 1.2)  # the image's size, as a share of its own
    flip: float = 0.5  # probability of the mirror image

    examples = "- {}"

    def __post_init__(self) -> None:
        if self.degrees < 0:
            raise ValueError(f"degrees={self.degrees:g} must not be negative: it is the largest rotation either way")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale={self.scale} must be two positive numbers, ascending")
        _check_probability("shift", self.shift)
        _check_probability("flip", self.flip)

    def build(self, size: int, channels: int, crop: float) -> Augmented:
        ensure_torchvision_importable()
        from torchvision.transforms import RandomAffine, RandomHorizontalFlip

        affine, mirror = RandomAffine(self.degrees, (self.shift,) * 2, self.scale), RandomHorizontalFlip(self.flip)
        return lambda image: mirror(affine(pixels(fit(image, size, crop))))


@augmentations.register("inception")
@dataclass(frozen=True)
class Inception(ImageAugmentation):
    """Random resized crop, mirror and colour jitter: ImageNet's basic recipe, and the light one for robust ViTs.

    Debenedetti et al. 2023 (arXiv 2209.07399) leave out everything heavier.
    """

    scale: tuple[float, float] = (0.08, 1.0)  # area of the crop, as a share of the image
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width to height of the crop
    flip: float = 0.5  # probability of the mirror image
    jitter: float = 0.4  # largest relative change of brightness, contrast and saturation; 0: none
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"  # of the resize; random: either, for each image

    examples = """
    - {}
    - {scale: [0.25, 1.0], jitter: 0.0, interpolation: bilinear}
    """

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} must be two shares of the image's area, ascending, in (0, 1]")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio} must be two positive ratios of width to height, ascending")
        if self.jitter < 0:
            raise ValueError(f"jitter={self.jitter:g} must not be negative: it is a relative change")
        _check_probability("flip", self.flip)

    def build(self, size: int, channels: int, crop: float) -> Augmented:
        steps = self.steps(size, channels)

        def augmented(image: Image) -> Tensor:
            for step in steps:
                image = step(image)
            return pixels(image)

        return augmented

    def steps(self, size: int, channels: int) -> list[Callable[[Any], Any]]:
        """Transforms of PIL images, in order."""
        ensure_torchvision_importable()
        from timm.data.transforms import RandomResizedCropAndInterpolation
        from torchvision import transforms

        steps: list[Callable[[Any], Any]] = [
            RandomResizedCropAndInterpolation(size, self.scale, self.ratio, self.interpolation),
            transforms.RandomHorizontalFlip(self.flip),
        ]
        if self.jitter:
            steps.append(transforms.ColorJitter(self.jitter, self.jitter, self.jitter))
        return steps


@augmentations.register("heavy")
@dataclass(frozen=True)
class Heavy(Inception):
    """Random resized crop, mirror, RandAugment and random erasing: what clean ViT recipes use.

    RandAugment: Cubuk et al. 2020 (arXiv 1909.13719). Random erasing: Zhong et al. 2020 (arXiv 1708.04896).
    """

    jitter: float = 0.0  # RandAugment changes colours already
    policy: str = "rand-m9-mstd0.5-inc1"  # timm's name of the RandAugment policy; rand-m15-n2 for the ViT recipe
    erasing: float = 0.25  # probability that a rectangle is erased
    fill: Literal["mean", "noise"] = "noise"  # what stands in it: ImageNet's mean colour, or noise about it

    examples = """
    - {}
    - {fill: mean}
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_probability("erasing", self.erasing)
        if not self.policy.startswith("rand"):
            raise ValueError(
                f"policy={self.policy!r} must be a RandAugment policy of timm, such as rand-m9-mstd0.5-inc1"
            )

    def steps(self, size: int, channels: int) -> list[Callable[[Any], Any]]:
        from timm.data.auto_augment import rand_augment_transform

        steps = super().steps(size, channels)
        grey = tuple(round(255 * mean) for mean in MEAN)
        hints = {"translate_const": int(size * 0.45), "img_mean": grey if channels == 3 else grey[0]}
        return [*steps[:2], rand_augment_transform(self.policy, hints), *steps[2:]]

    def build(self, size: int, channels: int, crop: float) -> Augmented:
        from timm.data.random_erasing import RandomErasing

        augmented = super().build(size, channels, crop)
        erase = RandomErasing(self.erasing, mode="const" if self.fill == "mean" else "pixel", device="cpu")
        mean, std = (torch.tensor(values[:channels]).view(-1, 1, 1) for values in (MEAN, STD))

        def erased(image: Image) -> Tensor:
            # timm erases in normalised units, where the mean is 0; a pixel that is kept comes back as it was
            normal = erase((augmented(image) / 255 - mean) / std)
            return ((normal * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

        return erased


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value:g} is not in [0, 1]: it is a probability")
