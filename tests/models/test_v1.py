"""The simulated V1: cells, noise, and sums of blocks. [docs/methods/v1-front-end.md]"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.keyed.mode import Held, Mode, Stream
from robust_train.keyed.noise import connect
from robust_train.models.gabor import Cells, kernels
from robust_train.models.v1 import V1, SummedBlocks, V1Block, V1Sum

SMALL = V1(visual_degrees=0.5, ksize=5, stride=2, simple=4, complex=3, sf_max=11.3, noise=None)
PUBLISHED = {(0.35, 0.07): (0.5722, 3.4294, 29.144), (0.286, 0.071): (0.8692, 4.3657, 35.834)}
"""Variances before the last ReLU at responses of 0, 1 and 10, for (noise_scale, noise_level)."""


@dataclass(frozen=True)
class Given(V1):
    """A front end of given cells."""

    given: tuple[tuple[float, ...], ...] = ()  # frequency, orientation, phase, nx, ny of each

    @property
    def cells(self) -> Cells:
        return Cells(*np.array(self.given, dtype=float).T)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def block(front: V1, channels: int = 3, size: int = 16, seed: int = 0) -> V1Block:
    """In float64, drawing noise from a key."""
    made = V1Block(front, channels, size).double()
    source = Held(Mode(noise=Stream(Key(seed))))
    connect(made, source)
    return made


def plain(images: Tensor, front: V1, made: V1Block) -> Tensor:
    """The cells' formulas, one place and one pixel at a time; kernels and colours are checked elsewhere."""
    size, half, cells = images.shape[-1], front.ksize // 2, front.cells
    ppd, side = size / front.visual_degrees, -(-size // front.stride)
    straight, shifted = (kernels(cells, ppd, front.ksize, shift).tolist() for shift in (0.0, 90.0))
    color = made.sampled[:, 5].long().tolist()
    out = torch.zeros(len(images), len(color), side, side, dtype=torch.float64)

    def response(image: list, kernel: list, row: int, column: int) -> float:
        total = 0.0
        for i in range(-half, half + 1):
            for j in range(-half, half + 1):
                if 0 <= row + i < size and 0 <= column + j < size:
                    total += kernel[i + half][j + half] * image[row + i][column + j]
        return total

    for index, image in enumerate(images.tolist()):
        for cell, channel in enumerate(color):
            for row in range(side):
                for column in range(side):
                    at = row * front.stride, column * front.stride
                    even = response(image[channel], straight[cell], *at)
                    odd = response(image[channel], shifted[cell], *at)
                    simple = cell < front.simple
                    seen = max(even, 0.0) if simple else math.sqrt((even**2 + odd**2) / 2)
                    out[index, cell, row, column] = front.k_exc * seen
    return out


@pytest.mark.parametrize(("simple", "complex_"), [(4, 3), (0, 3), (4, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_responses_are_the_formulas_of_simple_and_complex_cells(simple: int, complex_: int, stride: int) -> None:
    front = replace(SMALL, simple=simple, complex=complex_, stride=stride, visual_degrees=0.25)
    made, images = block(front, size=7), pixels(1, 3, 7, 7)
    found = made(images)
    assert found.shape == (1, simple + complex_, -(-7 // stride), -(-7 // stride))
    assert_close(found, plain(images, front, made), rtol=1e-9, atol=1e-5)  # 1e-5: the floor under the root


def test_the_bank_is_a_dense_convolution_with_zeros_for_the_other_colours() -> None:
    """512 published cells, 25 pixels wide."""
    front = V1(noise=None, relu_after=False, ksize=25, stride=4, visual_degrees=1.0)
    made, images = block(front, size=28), pixels(2, 3, 28, 28)
    cells, color = front.cells, made.sampled[:, 5].long()
    dense = torch.zeros(2, 512, 3, 25, 25, dtype=torch.float64)
    for index, shift in enumerate((0.0, 90.0)):
        dense[index, torch.arange(512), color] = kernels(cells, 28.0, 25, shift)
    even, odd = (F.conv2d(images, weight, stride=4, padding=12) for weight in dense)
    simple = even[:, :256].clamp_min(0)
    complex_ = ((even[:, 256:] ** 2 + odd[:, 256:] ** 2) / 2).sqrt()
    # weights are kept in float32
    assert_close(made(images), 25 * torch.cat([simple, complex_], 1), rtol=1e-4, atol=1e-4)
    assert made.weight.shape[:2] == (3 * torch.bincount(torch.cat([color, color[256:]])).max(), 1)


def test_a_cell_sees_one_colour_and_both_of_its_phases_the_same() -> None:
    """Unless the colours of the pair are drawn apart, as the first published code did: then two thirds see two."""
    for apart in (False, True):
        front = replace(SMALL, simple=200, complex=400, independent_quadrature_color=apart)
        made = block(front)
        seen = []
        for channel in range(3):
            images = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
            images[:, channel] = pixels(16, 16)
            seen.append(made(images).amax((0, 2, 3)) > 1e-4)
        counts = torch.stack(seen).sum(0)
        assert (counts[:200] == 1).all()
        assert torch.equal(torch.stack(seen)[:, :200].int().argmax(0), made.sampled[:200, 5].long())
        share = float((counts[200:] == 2).double().mean())
        assert abs(share - 2 / 3) < 5 * math.sqrt(2 / 9 / 400) if apart else share == 0


def test_colours_are_shared_out_evenly() -> None:
    """Within 5 standard errors of a third."""
    color = block(replace(SMALL, simple=3000, complex=0)).sampled[:, 5].long()
    share = torch.bincount(color, minlength=3) / 3000
    assert ((share - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / 3000)).all()


def grating(cycles: float, angle: float, phase: Tensor, side: int = 25) -> Tensor:
    """[P, 1, side, side] cos(2 pi f u + phase) about the centre, angle and phases [P] in degrees."""
    place = torch.arange(side, dtype=torch.float64) - side // 2
    theta = math.radians(angle)
    u = place[:, None] * math.cos(theta) + place[None] * math.sin(theta)
    return (2 * math.pi * cycles * u + torch.deg2rad(phase)[:, None, None]).cos()[:, None]


@pytest.mark.parametrize(
    ("phase", "simple", "complex_"), [(0, 12.463, 8.8129), (90, 0, 8.8037), (180, 0, 8.8129), (270, 0, 8.8037)]
)
def test_the_response_to_a_grating_is_that_in_print(phase: float, simple: float, complex_: float) -> None:
    """f = 0.1, sx = sy = 4, 25 pixels, gain 25, at the centre of an image of a pixel a degree."""
    cell = (0.1, 0.0, 0.0, 0.4, 0.4)
    front = Given(visual_degrees=25, stride=1, simple=1, complex=1, noise=None, given=(cell, cell))
    found = block(front, channels=1, size=25)(grating(0.1, 0, torch.tensor([float(phase)])))[0, :, 12, 12]
    assert float(found[0]) == pytest.approx(simple, abs=6e-4)
    assert float(found[1]) == pytest.approx(complex_, abs=1e-4)
    across = grating(0.1, 90, torch.tensor([float(phase)]))
    assert float(block(front, channels=1, size=25)(across)[0, 0, 12, 12]) < 0.0472


def test_complex_cells_do_not_see_the_phase_of_their_own_grating_and_simple_ones_do() -> None:
    """Less than 0.2 % of the response, for cells with nx of at least 0.3 whose window holds 3 sigma."""
    ppd, cells = 32.0, V1(sf_max=11.3).cells
    f = cells.frequency / ppd
    chosen = (cells.nx >= 0.3) & (3 * np.maximum(cells.nx, cells.ny) / f < 12.5)
    assert chosen.sum() > 100
    phase = torch.arange(0, 360, 30, dtype=torch.float64)
    for cell in np.stack([column[chosen] for column in vars(cells).values()], 1)[::4].tolist():
        front = Given(25 / ppd, stride=1, simple=1, complex=1, noise=None, given=(tuple(cell),) * 2)
        stripes = grating(cell[0] / ppd, cell[1], phase)
        simple, complex_ = block(front, channels=1, size=25)(stripes)[:, :, 12, 12].unbind(1)
        assert float((complex_.amax() - complex_.amin()) / complex_.mean()) < 0.002
        assert float(simple.amin()) == 0
        assert_close(simple.amax(), math.sqrt(2) * complex_.mean(), rtol=0.05, atol=0)


def noisy(front: V1, r: float, count: int = 400_000) -> Tensor:
    """[count] draws of a response with noise."""
    return block(front).noisy(torch.full((1, 1, count), r, dtype=torch.float64)).flatten()


@pytest.mark.parametrize(("settings", "r", "variance"), [
    (settings, r, variance)
    for settings, variances in PUBLISHED.items()
    for r, variance in zip((0.0, 1.0, 10.0), variances, strict=True)
])  # fmt: skip
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_neuronal_noise_has_the_mean_of_the_response_and_the_variance_in_print(settings, r, variance, factor):
    """Var = p^2 (r / a + b / a^2 + 1e-4 / a^2): in spikes, a r + b, the variance is the mean."""
    a, b = settings
    front = V1(simple=1, complex=0, noise_scale=a, noise_level=b, noise_factor=factor, relu_after=False)
    assert r / a + (b + 1e-4) / a**2 == pytest.approx(variance, rel=1e-4)
    out = noisy(front, r)
    wanted = factor**2 * variance
    assert abs(float(out.mean()) - r) < 5 * math.sqrt(wanted / len(out))
    assert float(out.var()) == pytest.approx(wanted, rel=5 * math.sqrt(2 / len(out)))


def test_gaussian_noise_has_its_own_deviation_at_any_response() -> None:
    front = V1(simple=1, complex=0, noise="gaussian", noise_scale=0.5, noise_factor=3.0, relu_after=False)
    for r in (0.0, 10.0):
        out = noisy(front, r)
        assert abs(float(out.mean()) - r) < 5 * 1.5 / math.sqrt(len(out))
        assert float(out.std()) == pytest.approx(1.5, rel=5 / math.sqrt(2 * len(out)))


@pytest.mark.parametrize("noise", ["neuronal", "gaussian"])
def test_the_last_cut_at_zero_comes_after_the_noise(noise) -> None:
    front = V1(simple=1, complex=0, noise=noise)
    cut, uncut = noisy(front, 0.5), noisy(replace(front, relu_after=False), 0.5)
    assert (uncut < 0).any()
    assert torch.equal(cut, uncut.clamp_min(0))
    assert (noisy(replace(front, noise=None), 0.5) == 0.5).all()


def fixed(front: V1, **settings: object) -> V1Block:
    made = block(front, **settings)  # type: ignore[arg-type]
    made.noise.held.settle({"noisy": "fixed"})
    return made


def test_the_derivative_flows_through_the_size_of_the_noise() -> None:
    """d out / d r = 1 + p n / (2 sqrt(z + 1e-4)) for z = a r + b > 0, with n the draw."""
    front = replace(SMALL, noise="neuronal", noise_factor=1.5, relu_after=False)
    made = fixed(front)
    r = (pixels(2, 7, 3, 3) + 1.2).requires_grad_()
    (slope,) = torch.autograd.grad(made.noisy(r).sum(), r)
    n, z = made.noise(r), 0.35 * r.detach() + 0.07
    assert_close(slope, 1 + 1.5 * n / (2 * (z + 1e-4).sqrt()))
    assert torch.autograd.gradcheck(made.noisy, (r,))


def test_the_gradient_of_the_pixels_is_that_of_the_whole_block() -> None:
    made, images = fixed(replace(SMALL, noise="neuronal"), size=8), pixels(2, 3, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(made, (images,), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_finite_where_a_cell_sees_nothing(dtype) -> None:
    """At the middle grey both halves of a complex cell are 0, where the root's own slope has no bound."""
    made = block(replace(SMALL, noise="neuronal", simple=2)).to(dtype)
    images = torch.zeros(1, 3, 16, 16, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(images).sum(), images)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(made.responses(images)[:, 2:].sum(), images)
    assert not gradient.any()


def test_a_block_has_no_parameter_and_its_filters_and_cells_are_saved() -> None:
    front = V1(simple=5, complex=6, seed=3, stride=2, visual_degrees=1.0)
    made = V1Block(front, 3, 32)
    assert not list(made.parameters())
    assert set(made.state_dict()) == {"weight", "place", "sampled"}
    cells = front.cells
    columns = [cells.frequency, cells.orientation, cells.phase, cells.nx, cells.ny]
    assert_close(made.sampled[:, :5], torch.from_numpy(np.stack(columns, 1)))
    other = V1Block(front, 3, 32)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in made.state_dict().items()})
    images = torch.rand(2, 3, 32, 32)
    assert not other.responses(images)[:, :5].any()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.responses(images), made.responses(images))


def test_the_seed_of_the_cells_alone_decides_the_filters() -> None:
    torch.manual_seed(1)
    one = V1Block(SMALL, 3, 16).state_dict()
    torch.manual_seed(2)
    other = V1Block(SMALL, 3, 16).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not torch.equal(V1Block(replace(SMALL, seed=1), 3, 16).sampled[:, 5], one["sampled"][:, 5])


def test_the_trained_part_is_one_convolution_initialised_by_fan_out() -> None:
    torch.manual_seed(0)
    built = V1(visual_degrees=1.0, stride=2, ksize=9).build((3, 32, 32), 64)
    parameters = dict(built.named_parameters())
    assert {name: value.shape for name, value in parameters.items()} == {"bottleneck.weight": (64, 512, 1, 1)}
    assert float(parameters["bottleneck.weight"].detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.03)
    assert built(torch.rand(2, 3, 32, 32)).shape == (2, 64, 16, 16)


@pytest.mark.parametrize(
    ("size", "ksize", "stride", "side"), [(224, 25, 4, 56), (64, 25, 2, 32), (32, 15, 2, 16), (33, 7, 4, 9)]
)
def test_places_are_every_stride_pixels(size: int, ksize: int, stride: int, side: int) -> None:
    front = V1(simple=1, complex=1, ksize=ksize, stride=stride)
    assert V1Block(front, 3, size)(torch.zeros(1, 3, size, size)).shape == (1, 2, side, side)
    assert front.step == stride


def test_a_window_may_be_wider_than_the_image_and_an_image_grey() -> None:
    front = replace(SMALL, ksize=25)
    made, images = block(front, channels=1, size=8), pixels(1, 1, 8, 8)
    assert_close(made(images), plain(images, front, made), rtol=1e-6, atol=1e-5)


def test_what_follows_the_convolution_is_computed_in_float32() -> None:
    front = replace(SMALL, simple=32, complex=32, ksize=9)
    made, images = V1Block(front, 3, 16), pixels(4, 3, 16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = made(images)
    assert half.dtype == torch.float32
    single = made(images)
    assert not torch.equal(half, single)
    assert float((half - single).norm() / single.norm()) < 0.01
    assert made.double()(images.double()).dtype == torch.float64


def connected(*fronts: V1, learned: bool = False) -> tuple[SummedBlocks, Held]:
    summed = SummedBlocks([V1Block(front, 3, 16) for front in fronts], learned).double()
    source = Held()
    connect(summed, source)
    return summed, source


def test_a_sum_adds_up_its_blocks_whose_noise_is_independent() -> None:
    front = replace(SMALL, noise="gaussian", relu_after=False)
    summed, source = connected(front, front)
    images = pixels(64, 3, 16, 16)
    clean = 2 * summed.blocks[0].responses(images)
    noise = summed(images) - clean
    # two independent draws of deviation 0.35; one draw taken twice would have 0.7
    assert float(noise.std()) == pytest.approx(0.35 * math.sqrt(2), rel=5 / math.sqrt(2 * noise.numel()))
    with source.entered({"noisy": "off"}):
        assert_close(summed(images), clean)


def test_weights_of_a_sum_begin_at_one_and_are_trained_where_it_says_so() -> None:
    fronts = SMALL, replace(SMALL, seed=1, simple=3, complex=4)
    fixed_sum, _ = connected(*fronts)
    summed, _ = connected(*fronts, learned=True)
    images = pixels(2, 3, 16, 16)
    assert not list(fixed_sum.parameters())
    assert [name for name, _ in summed.named_parameters()] == ["weight"]
    assert_close(summed(images), fixed_sum(images))
    one, other = (made(images) for made in summed.blocks)
    with torch.no_grad():
        summed.weight.copy_(torch.tensor([0.5, -2.0]))
    assert_close(summed(images), 0.5 * one - 2 * other)
    summed(images).sum().backward()
    assert_close(summed.weight.grad, torch.stack([one.sum(), other.sum()]))


def test_a_sum_builds_one_bottleneck_behind_its_blocks() -> None:
    built = V1Sum((SMALL, replace(SMALL, seed=1)), learned=True).build((3, 16, 16), 10)
    assert isinstance(built, nn.Sequential)
    assert built(torch.rand(2, 3, 16, 16)).shape == (2, 10, 8, 8)
    assert {name for name, _ in built.named_parameters()} == {"block.weight", "bottleneck.weight"}


@pytest.mark.parametrize("blocks", [(), (SMALL, replace(SMALL, stride=4)), (SMALL, replace(SMALL, simple=5))])
def test_blocks_that_cannot_be_added_are_refused(blocks: tuple[V1, ...]) -> None:
    with pytest.raises(ValueError, match="name at least one, all with the same cells and stride"):
        V1Sum(blocks)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ksize": 24}, "ksize=24 must be odd"),
        ({"simple": 0, "complex": 0}, "there must be cells"),
        ({"simple": -1}, "simple=-1"),
        ({"stride": 0}, "stride=0 must be positive"),
        ({"noise_scale": 0.0}, "noise_scale=0 must be positive"),
        ({"k_exc": math.nan}, "k_exc=nan must be positive"),
        ({"visual_degrees": -1.0}, "visual_degrees=-1 must be positive"),
        ({"sf_corr": 1.0}, "sf_corr=1 is no correlation"),
    ],
)
def test_a_front_end_that_cannot_be_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **wrong)
