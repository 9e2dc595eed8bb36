"""Retina and lateral geniculate nucleus (LGN): what stands before a simulated V1.

The SubcorticalBlock of EVNet: Piper, Oliveira and Marques 2025 (arXiv 2506.03089), with the values of its code.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_train.keyed.noise import KeyedNoise
from robust_train.losses import full
from robust_train.read.errors import ConfigError

PPD = 32  # pixels a degree at which the radii are given
FLOOR = 1e-12  # under the root of the contrast: at 0 its slope has no bound
DARK = 1e-5  # added to the mean that light adaptation divides by, and to responses under the root of the noise
OPPONENTS = (  # R+/G-, G+/R-, B+/Y-, and grey: weights of red, green and blue in the centre, and in the surround
    ((1, 0, 0), (0, 1, 0)),
    ((0, 1, 0), (1, 0, 0)),
    ((0, 0, 1), (1 / 2, 1 / 2, 0)),
    ((1 / 3, 1 / 3, 1 / 3), (1 / 3, 1 / 3, 1 / 3)),
)


@dataclass(frozen=True)
class Pathway:
    """One kind of cell. Radii are sqrt(2) standard deviations, in pixels at 32 a degree."""

    center: float  # radius of the centre
    surround: float  # radius of the surround
    ratio: float  # height of the surround where the centre's is 1; below 0: it inhibits
    pool: float  # radius of the neighbourhood whose contrast divides the response
    c50: float  # added to that contrast
    exponent: float  # of the sum
    gain: float  # of the response, before the noise

    def __post_init__(self) -> None:
        for name in ("center", "surround", "pool", "c50"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g} must be positive")


PARVO = Pathway(center=1.4948, surround=7.1528, ratio=-0.011895, pool=13.4115, c50=1.0, exponent=1.0, gain=5.2953)
MAGNO = Pathway(
    center=2.4204, surround=17.0919, ratio=-0.0037506, pool=28.8722, c50=0.18502, exponent=0.80687, gain=2.8495
)


@dataclass(frozen=True)
class Subcortical:
    """Retina and LGN: light adaptation, centre and surround, contrast normalisation, noise; 4 cells.

        l = (x - m) / (m + 1e-5)                                     m: the mean of an image, over colours and pixels
        d = (c * C + ratio s * S) / |sum C + ratio sum S|            C, S: Gaussians of height 1; c, s: colours of l
        e = gain d / (sqrt(G * d^2) + c50)^exponent                  G: a Gaussian of sum 1
        out = e + n sqrt(fano (|e| + 1e-5))                          n ~ N(0, 1), drawn as V1's is

    Nothing is trained. Windows hold `energy` of the surround, or of G: 2 ceil(r sqrt(-ln(1 - energy))) + 1 pixels, but
    at most 2 size - 1, what reflection at the borders can fill. All of it is float32 or better. Costs one-dimensional
    convolutions of 4 channels: little beside V1.
    """

    parvo: Pathway = PARVO  # the three colour-opponent cells: R+/G-, G+/R-, B+/Y-
    magno: Pathway = MAGNO  # the grey one
    energy: float = 0.75  # share of a Gaussian that its window holds
    relu: bool = False  # whether responses are cut at 0 before the gain
    fano: float = 0.4  # variance of the noise over the response; 0: no noise

    def __post_init__(self) -> None:
        if not 0 < self.energy < 1:
            raise ValueError(f"energy={self.energy:g} must lie between 0 and 1: it is the share that a window holds")
        if self.fano < 0:
            raise ValueError(f"fano={self.fano:g} must not be negative: it is a variance over a mean")

    @property
    def channels(self) -> int:
        """Cells: channels of its output."""
        return len(OPPONENTS)

    def build(self, channels: int, size: int, ppd: float) -> nn.Module:
        """The module, for images of 3 channels, `size` pixels and `ppd` pixels a degree. ConfigError for others."""
        if channels != 3:
            raise ConfigError(
                f"lgn: its cells oppose red, green and blue, and the images have {channels} "
                f"channel{'s' * (channels != 1)}. Take lgn: null, or images of 3 channels"
            )
        return SubcorticalBlock(self, size, ppd)


class SubcorticalBlock(nn.Module):
    """Images [B, 3, H, W] in [0, 1] to responses [B, 4, H, W], float32 or better. No parameter."""

    colors: Tensor  # [2, 4, 3]: of centre and surround
    heights: Tensor  # [2, 4, 1, 1]: 1 and ratio, over |sum C + ratio sum S|
    center: Tensor  # [4, k]: a Gaussian of height 1 along a line, 0 beyond its window; C is its outer product
    surround: Tensor  # [4, k]
    pool: Tensor  # [4, l]: of sum 1
    c50: Tensor  # [4, 1, 1]
    exponent: Tensor  # [4, 1, 1]
    gain: Tensor  # [4, 1, 1]

    def __init__(self, part: Subcortical, size: int, ppd: float) -> None:
        super().__init__()
        self.part, self.noise = part, KeyedNoise()
        paths, scale = (part.parvo, part.parvo, part.parvo, part.magno), ppd / PPD
        most = 2 * size - 1  # reflection gives at most size - 1 pixels on either side

        def lines(radii: list[float], windows: list[float]) -> Tensor:
            sides = [min(window(radius * scale, part.energy), most) for radius in windows]
            return gaussians([radius * scale for radius in radii], sides)

        surrounds, pools = [path.surround for path in paths], [path.pool for path in paths]
        center, surround = lines([path.center for path in paths], surrounds), lines(surrounds, surrounds)
        pool = lines(pools, pools)
        ratio = center.new_tensor([path.ratio for path in paths])
        total = (center.sum(1).square() + ratio * surround.sum(1).square()).abs()
        buffers = {
            "colors": torch.tensor(OPPONENTS, dtype=torch.float64).transpose(0, 1),
            "heights": torch.stack([1 / total, ratio / total]).view(2, -1, 1, 1),
            "center": center,
            "surround": surround,
            "pool": pool / pool.sum(1, keepdim=True),
            **{
                name: center.new_tensor([getattr(path, name) for path in paths]).view(-1, 1, 1)
                for name in ("c50", "exponent", "gain")
            },
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.to(torch.get_default_dtype()))

    def forward(self, images: Tensor) -> Tensor:
        """Pixels as they are, in [0, 1], to responses with noise."""
        kind = images.device.type
        # a dark image's mean is lost in half precision; a network that is only measured out (meta) has none
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return self.noisy(self.responses(images))

    def responses(self, images: Tensor) -> Tensor:
        """e, without noise."""
        light = adapted(full(images))
        center, surround = torch.einsum("pqc,bchw->pbqhw", self.colors, light)
        d = self.heights[0] * blurred(center, self.center) + self.heights[1] * blurred(surround, self.surround)
        contrast = (blurred(d.square(), self.pool) + FLOOR).sqrt()
        e = d / (contrast + self.c50) ** self.exponent
        return self.gain * (e.clamp_min(0) if self.part.relu else e)

    def noisy(self, e: Tensor) -> Tensor:
        """Responses with noise, as the network's key says; the derivative flows through its size too."""
        drawn = self.noise(e) if self.part.fano else None
        return e if drawn is None else e + drawn * (self.part.fano * (e.abs() + DARK)).sqrt()

    def extra_repr(self) -> str:
        return f"windows {self.surround.shape[1]} and {self.pool.shape[1]} pixels"


def adapted(images: Tensor) -> Tensor:
    """Light adaptation: (x - m) / (m + 1e-5), m [B, 1, 1, 1] the mean of each image."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) / (mean + DARK)


def window(radius: float, energy: float) -> int:
    """Side of the window that holds a share of a round Gaussian's energy: 1 - exp(-R^2 / radius^2) inside radius R."""
    return 2 * math.ceil(radius * math.sqrt(-math.log(1 - energy))) + 1


def gaussians(radii: list[float], sides: list[int]) -> Tensor:
    """[n, longest] float64: exp(-i^2 / radius^2), i from the centre, each inside a window of its own side."""
    half = max(sides) // 2
    place = torch.arange(-half, half + 1, dtype=torch.float64)
    radius, side = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (radii, sides))
    return (-(place.square() / radius.square())).exp() * (place.abs() <= side // 2)


def blurred(planes: Tensor, lines: Tensor) -> Tensor:
    """Planes [B, n, H, W], each convolved with the outer product of its line [n, k]; reflected at the borders."""
    half = lines.shape[1] // 2
    planes = F.pad(planes, (half, half, half, half), mode="reflect")
    planes = F.conv2d(planes, lines[:, None, None, :], groups=len(lines))
    return F.conv2d(planes, lines[:, None, :, None], groups=len(lines))
