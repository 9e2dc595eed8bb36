"""A simulated primary visual cortex (V1) at the front of a network.

Dapello, Marques, Schrimpf, Geiger, Cox and DiCarlo 2020 (NeurIPS; bioRxiv 2020.06.16.154542); the geometry for 64
pixels, the scaled noise and the sum of blocks after Baidya, Dapello, DiCarlo and Marques 2021 (arXiv 2110.10645).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_train.keyed import Key, integers, uniform
from robust_train.keyed.noise import KeyedNoise
from robust_train.losses import full
from robust_train.models.front import FrontEnd
from robust_train.models.gabor import Cells, Tables, kernels, sampled
from robust_train.models.lgn import Subcortical
from robust_train.nouns import Shape
from robust_train.read.registry import edits

FLOOR = 1e-12  # under the root of complex cells: at 0 its slope has no bound
SPONTANEOUS = 1e-4  # added to the variance of the noise


@edits.register("v1")
@dataclass(frozen=True)
class V1(FrontEnd):
    """Gabor filters with measured parameters, simple and complex cells, noise that grows with the response; fixed.

        q_0 = x * G(phase), q_90 = x * G(phase + 90 degrees)          each kernel on one colour channel
        simple r = k max(q_0, 0),    complex r = k sqrt((q_0^2 + q_90^2) / 2)
        neuronal: z = a r + b,  out = (z + p n sqrt(max(z, 0) + 1e-4) - b) / a,    gaussian: out = r + p a n

    n ~ N(0, 1), drawn afresh for each forward, in training and evaluation; `with network.noise(key, "off")` and "fixed"
    switch it. A 1x1 convolution without bias, the one part that is trained, leads into the model in place of its stem.
    [B, C, H, W] to [B, width, ceil(H / stride), ...]. Costs one convolution of simple + 2 complex kernels. Behind an
    `lgn` pixels are not normalised, and each of its channels is dealt an equal share of the cells.
    """

    visual_degrees: float = 8.0  # that the image's side is taken to span; 2 at 64 pixels, 1 at 32
    ksize: int = 25  # side of the kernels in pixels, odd
    stride: int = 4  # pixels between two places; 2 at 64 and 32 pixels
    simple: int = 256  # simple cells; may be 0
    complex: int = 256  # complex cells; may be 0
    sf_min: float = 0.0  # cycles a degree: bins of the measured frequencies from here
    sf_max: float = 9.0  # to here
    sf_corr: float = 0.75  # correlation of size and frequency
    tables: Tables = 2020  # measured, as of 2020 or 2024 (simple and complex apart); or uniform: the control
    seed: int = 0  # of the cells: the same in every run that does not name another
    k_exc: float = 25.0  # k: gain of the responses
    noise: Literal["neuronal", "gaussian"] | None = "neuronal"  # null: none
    noise_scale: float = 0.35  # a: spikes for a response of 1; of gaussian: its standard deviation
    noise_level: float = 0.07  # b: spontaneous spikes
    noise_factor: float = 1.0  # p: times the noise; its square is the Fano factor
    relu_after: bool = True  # whether responses are cut at 0 after the noise; members of an ensemble should agree
    independent_quadrature_color: bool = False  # q_90 on a colour of its own, as the first published code drew it
    lgn: Subcortical | None = None  # retina and LGN before it; {}: as tuned; its 4 channels take the colours' place

    examples = "- {visual_degrees: 0.5, ksize: 5, stride: 2, simple: 4, complex: 4}"

    def __post_init__(self) -> None:
        if self.ksize < 1 or self.ksize % 2 == 0:
            raise ValueError(f"ksize={self.ksize} must be odd: a kernel has a centre")
        if min(self.simple, self.complex) < 0 or self.simple + self.complex < 1:
            raise ValueError(f"simple={self.simple} and complex={self.complex}: there must be cells")
        for name in ("visual_degrees", "stride", "k_exc", "noise_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name):g} must be positive")
        if not -1 < self.sf_corr < 1:
            raise ValueError(f"sf_corr={self.sf_corr:g} is no correlation between -1 and 1")

    @property
    def mean(self) -> tuple[float, ...]:
        return super().mean if self.lgn is None else (0.0,)

    @property
    def std(self) -> tuple[float, ...]:
        return super().std if self.lgn is None else (1.0,)

    @property
    def step(self) -> int:
        return self.stride

    @property
    def cells(self) -> Cells:
        """The parameters of its cells."""
        return sampled(self.simple, self.complex, self.tables, self.seed, self.sf_min, self.sf_max, self.sf_corr)

    def build(self, shape: Shape, width: int) -> nn.Module:
        return nn.Sequential(OrderedDict(**self.fixed(shape), bottleneck=bottleneck(self, width)))

    def fixed(self, shape: Shape) -> dict[str, nn.Module]:
        """What of it is not trained, by name, in order: the LGN where there is one, and the block."""
        channels, size = shape[0], shape[-1]
        if self.lgn is None:
            return {"block": V1Block(self, channels, size)}
        lgn = self.lgn.build(channels, size, size / self.visual_degrees)
        return {"lgn": lgn, "block": V1Block(self, self.lgn.channels, size)}


@edits.register("v1-sum")
@dataclass(frozen=True)
class V1Sum(FrontEnd):
    """The sum of several V1 blocks before one bottleneck: the ensemble inside one network.

        out = sum_m w_m V1_m(x),    w_m = 1, or learned (from 1 on)

    Baidya et al. 2021 (arXiv 2110.10645). Each block has the same number of cells and the same stride.
    """

    blocks: tuple[V1, ...]  # their noise is independent
    learned: bool = False  # whether the weights are trained

    examples = "- {blocks: [{visual_degrees: 0.5, ksize: 5, stride: 2, simple: 4, complex: 4}]}"

    def __post_init__(self) -> None:
        shapes = {(block.simple + block.complex, block.stride) for block in self.blocks}
        if len(shapes) != 1:
            raise ValueError(
                f"blocks are added up: name at least one, all with the same cells and stride (there are "
                f"{', '.join(f'{cells} every {stride} pixels' for cells, stride in sorted(shapes)) or 'none'})"
            )
        if len({block.lgn is None for block in self.blocks}) != 1:
            raise ValueError("blocks see the same pixels: give all of them an lgn, or none")

    @property
    def mean(self) -> tuple[float, ...]:
        return self.blocks[0].mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.blocks[0].std

    @property
    def step(self) -> int:
        return self.blocks[0].stride

    def build(self, shape: Shape, width: int) -> nn.Module:
        stacks = [list(block.fixed(shape).values()) for block in self.blocks]
        layers = [nn.Sequential(*stack) if len(stack) > 1 else stack[0] for stack in stacks]
        summed = SummedBlocks(layers, self.learned)
        return nn.Sequential(OrderedDict(block=summed, bottleneck=bottleneck(self.blocks[0], width)))


class V1Block(nn.Module):
    """The fixed part of a V1 front end. No parameter; the filters and what they were made from are buffers."""

    weight: Tensor  # [G m, 1, k, k]: the kernels of each colour channel, filled up to the largest number m
    place: Tensor  # [S + 2 C] int64: where in the convolution's output each kernel's response is
    sampled: Tensor  # [S + C, 6] float64: frequency, orientation, phase, nx, ny, colour

    def __init__(self, front: V1, channels: int, size: int) -> None:
        super().__init__()
        self.front, self.groups = front, channels
        cells, ppd = front.cells, size / front.visual_degrees
        with torch.device("cpu"):  # where numpy's numbers are, wherever the network is made
            straight = kernels(cells, ppd, front.ksize)
            shifted = kernels(cells, ppd, front.ksize, shift=90.0)[front.simple :]
            color = colors(front, channels, "color")
            other = colors(front, channels, "quadrature color") if front.independent_quadrature_color else color
            weight, place = banked(torch.cat([straight, shifted]), torch.cat([color, other[front.simple :]]), channels)
            columns = [cells.frequency, cells.orientation, cells.phase, cells.nx, cells.ny, color.numpy()]
            table = torch.stack([torch.as_tensor(column).double() for column in columns], 1)
        device = torch.get_default_device()
        self.register_buffer("weight", weight.to(device, torch.get_default_dtype()))
        self.register_buffer("place", place.to(device))
        self.register_buffer("sampled", table.to(device))
        self.noise = KeyedNoise()

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, H, W], normalised, to responses [B, S + C, ceil(H / stride), ...], float32 or better."""
        return self.noisy(self.responses(images))

    def responses(self, images: Tensor) -> Tensor:
        """r, without noise."""
        front = self.front
        convolved = F.conv2d(images, self.weight, None, front.stride, front.ksize // 2, groups=self.groups)
        simple, even, odd = (
            full(convolved[:, rows]) for rows in self.place.split([front.simple, front.complex, front.complex])
        )
        energy = even.square() + odd.square()
        return front.k_exc * torch.cat([simple.clamp_min(0), ((energy + FLOOR) / 2).sqrt()], 1)

    def noisy(self, r: Tensor) -> Tensor:
        """Responses with noise, as the front end says; the derivative flows through its size too."""
        front = self.front
        drawn = None if front.noise is None else self.noise(r)
        if drawn is not None and front.noise == "gaussian":
            r = r + front.noise_factor * front.noise_scale * drawn
        elif drawn is not None:
            z = front.noise_scale * r + front.noise_level
            z = z + front.noise_factor * drawn * (z.clamp_min(0) + SPONTANEOUS).sqrt()
            r = (z - front.noise_level) / front.noise_scale
        return r.clamp_min(0) if front.relu_after else r

    def extra_repr(self) -> str:
        return f"{self.front.simple} simple + {self.front.complex} complex cells, ksize={self.front.ksize}"


class SummedBlocks(nn.Module):
    """A weighted sum of what several blocks make of the same images."""

    def __init__(self, blocks: list[nn.Module], learned: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.weight = nn.Parameter(torch.ones(len(blocks))) if learned else None

    def forward(self, images: Tensor) -> Tensor:
        made = [block(images) for block in self.blocks]
        if self.weight is None:
            return torch.stack(made).sum(0)
        return torch.einsum("m,m...->...", self.weight, torch.stack(made))


def bottleneck(front: V1, width: int) -> nn.Conv2d:
    """The trained 1x1 convolution from the cells to the model: Kaiming-normal by fan-out."""
    made = nn.Conv2d(front.simple + front.complex, width, 1, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def colors(front: V1, channels: int, name: str) -> Tensor:
    """[S + C] int64: the channel that each cell sees. Colours are drawn; channels of an LGN are dealt, equally many."""
    key, count = Key(front.seed).of(name), front.simple + front.complex
    if front.lgn is None:
        return integers(key, (count, 1), channels)[:, 0]
    order = uniform(key, (count, 1), dtype=torch.float64)[:, 0].argsort(stable=True)
    return order.argsort() % channels


def banked(bank: Tensor, color: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Kernels [n, k, k], each for one colour channel, as the weight of one grouped convolution, and their places in it.

    A dense convolution would multiply by the zeros of the other channels: `channels` times the arithmetic.
    """
    counts = torch.bincount(color, minlength=channels)
    most = int(counts.max())
    weight = bank.new_zeros(channels * most, 1, *bank.shape[1:])
    place = torch.empty_like(color)
    for channel in range(channels):
        mine = (color == channel).nonzero().flatten()
        place[mine] = channel * most + torch.arange(len(mine))
    weight[place, 0] = bank
    return weight, place
