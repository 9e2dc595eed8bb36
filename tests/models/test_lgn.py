"""Retina and LGN before V1: closed forms, symmetries, the definition written out, and noise by keys."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.models.lgn import Pathway, Subcortical, SubcorticalBlock
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.models.v1 import V1, V1Sum
from robust_train.read.errors import ConfigError

EXACT = {"rtol": 0.0, "atol": 1e-12}
SMALL = Subcortical(
    parvo=Pathway(center=0.8, surround=1.9, ratio=-0.2, pool=2.3, c50=0.7, exponent=1.3, gain=2.0),
    magno=Pathway(center=1.1, surround=2.6, ratio=-0.1, pool=3.1, c50=0.2, exponent=0.8, gain=3.0),
)
TUNED = {  # Piper et al.'s code, at 32 pixels a degree
    "parvo": (1.4948, 7.1528, -0.011895, 13.4115, 1.0, 1.0, 5.2953),
    "magno": (2.4204, 17.0919, -0.0037506, 28.8722, 0.18502, 0.80687, 2.8495),
}
FRONT = V1(visual_degrees=1, ksize=9, stride=2, simple=12, complex=8, k_exc=5.3, relu_after=False, lgn=Subcortical())


def block(part: Subcortical = SMALL, size: int = 12, ppd: float = 32, dtype: torch.dtype = torch.float64):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return part.build(3, size, ppd)
    finally:
        torch.set_default_dtype(before)


def pixels(count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform_image(red: float, green: float, blue: float, size: int = 12) -> Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, size, size)


def network(front: V1 | V1Sum = FRONT) -> Network:
    torch.manual_seed(0)
    return Blueprint(SmallCNN(), edits=(front,), group=4).build(10, (3, 32, 32), "fp32", 4).eval()


# -- the definition ---------------------------------------------------------------------------------


def height(i: int, j: int, radius: float) -> float:
    """A round Gaussian whose standard deviation is radius / sqrt(2)."""
    return math.exp(-(i * i + j * j) / (2 * (radius / math.sqrt(2)) ** 2))


def half_window(radius: float, size: int) -> int:
    return min(math.ceil(math.sqrt(-2 * math.log(1 - 0.75)) * radius / math.sqrt(2)), size - 1)


def mirrored(index: int, size: int) -> int:
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def written_out(part: Subcortical, image: Tensor) -> Tensor:
    """Responses [4, H, W] to one image [3, H, W], pixel by pixel."""
    size = image.shape[-1]
    mean = float(image.mean())
    light = ((image - mean) / (mean + 1e-5)).tolist()
    red, green, blue = light
    yellow = [[(r + g) / 2 for r, g in zip(*rows, strict=True)] for rows in zip(red, green, strict=True)]
    grey = [[sum(point) / 3 for point in zip(*rows, strict=True)] for rows in zip(red, green, blue, strict=True)]
    made = []
    for plane, around, path in (
        (red, green, part.parvo),
        (green, red, part.parvo),
        (blue, yellow, part.parvo),
        (grey, grey, part.magno),
    ):
        half = half_window(path.surround, size)
        places = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]
        total = sum(height(i, j, path.center) + path.ratio * height(i, j, path.surround) for i, j in places)
        d = torch.zeros(size, size, dtype=torch.float64)
        for y in range(size):
            for x in range(size):
                for i, j in places:
                    at = mirrored(y + i, size), mirrored(x + j, size)
                    d[y, x] += height(i, j, path.center) * plane[at[0]][at[1]]
                    d[y, x] += path.ratio * height(i, j, path.surround) * around[at[0]][at[1]]
        d /= abs(total)
        half = half_window(path.pool, size)
        places = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]
        total, squares = sum(height(i, j, path.pool) for i, j in places), d.square().tolist()
        e = torch.zeros(size, size, dtype=torch.float64)
        for y in range(size):
            for x in range(size):
                pooled = sum(
                    height(i, j, path.pool) * squares[mirrored(y + i, size)][mirrored(x + j, size)] for i, j in places
                )
                e[y, x] = path.gain * d[y, x] / (math.sqrt(pooled / total) + path.c50) ** path.exponent
        made.append(e)
    return torch.stack(made)


@pytest.mark.parametrize("size", [9, 4])  # at 4 pixels windows are cut to 7
def test_responses_are_the_definition_written_out_pixel_by_pixel(size: int) -> None:
    image = pixels(1, size)
    assert_close(block(size=size).responses(image)[0], written_out(SMALL, image[0]), rtol=0, atol=1e-9)


def test_the_tuned_values_are_the_published_ones() -> None:
    for name, values in TUNED.items():
        assert getattr(Subcortical(), name) == Pathway(*values)
    assert (Subcortical().energy, Subcortical().relu, Subcortical().fano) == (0.75, False, 0.4)


# -- closed forms and symmetries --------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_grey_image_has_no_response(level: float) -> None:
    responses = block().responses(uniform_image(level, level, level))
    assert_close(responses, torch.zeros_like(responses), **EXACT)


def test_a_colour_without_contrast_has_the_closed_form_response() -> None:
    """d = (C l_c + ratio S l_s) / |C + ratio S| everywhere, its contrast is |d|, and grey cells see nothing."""
    red, green, blue = 0.9, 0.2, 0.4
    mean = (red + green + blue) / 3
    r, g, b = ((color - mean) / (mean + 1e-5) for color in (red, green, blue))
    path, half = SMALL.parvo, half_window(SMALL.parvo.surround, 12)
    area = [
        sum(height(i, j, radius) for i in range(-half, half + 1) for j in range(-half, half + 1))
        for radius in (path.center, path.surround)
    ]
    expected = []
    for center, surround in ((r, g), (g, r), (b, (r + g) / 2)):
        d = (area[0] * center + path.ratio * area[1] * surround) / abs(area[0] + path.ratio * area[1])
        expected.append(path.gain * d / (abs(d) + path.c50) ** path.exponent)
    responses = block().responses(uniform_image(red, green, blue))[0]
    assert_close(responses, torch.tensor([*expected, 0.0], dtype=torch.float64).view(4, 1, 1).expand_as(responses))


@pytest.mark.parametrize(
    ("ppd", "surrounds", "pools"), [(32, (19, 43), (33, 69)), (64, (35, 83), (65, 137)), (16, (11, 23), (17, 35))]
)
def test_windows_hold_three_quarters_of_a_gaussian(ppd: float, surrounds: tuple, pools: tuple) -> None:
    """2 ceil(r sqrt(ln 4)) + 1 pixels, with the radii at so many pixels a degree."""
    made = block(Subcortical(), 224, ppd)
    sides = [[int((line > 0).sum()) for line in lines] for lines in (made.center, made.surround, made.pool)]
    assert sides == [[surrounds[0]] * 3 + [surrounds[1]]] * 2 + [[pools[0]] * 3 + [pools[1]]]


@pytest.mark.parametrize("name", ["center", "surround", "pool"])
def test_radii_grow_with_the_pixels_of_a_degree(name: str) -> None:
    """At twice the pixels a degree every second tap of a line is the line at 32."""
    coarse, fine = getattr(block(Subcortical(), 224, 32), name), getattr(block(Subcortical(), 224, 64), name)
    for few, many in zip(coarse, fine, strict=True):
        few, many = few[len(few) // 2 :] / few.max(), many[len(many) // 2 :: 2] / many.max()
        shared = min(int((few > 0).sum()), int((many > 0).sum()))
        assert shared >= 9
        assert_close(many[:shared], few[:shared], **EXACT)


def test_images_of_32_pixels_and_one_degree_are_wide_enough() -> None:
    """The largest window, 69 pixels, is cut to the 63 that reflection can fill."""
    made = block(Subcortical(), size=32)
    assert [int((line > 0).sum()) for line in made.pool] == [33, 33, 33, 63]
    assert made(pixels(2, 32)).shape == (2, 4, 32, 32)


@pytest.mark.parametrize("turn", [lambda x: x.rot90(1, (2, 3)), lambda x: x.flip(3), lambda x: x.transpose(2, 3)])
def test_cells_have_no_orientation(turn) -> None:
    images, made = pixels(2, 12), block()
    assert_close(made.responses(turn(images)), turn(made.responses(images)), **EXACT)


def test_brightness_does_not_change_responses() -> None:
    """But for the 1e-5 beside the mean."""
    images, made = pixels(2, 12), block()
    assert_close(made.responses(images / 4), made.responses(images), rtol=1e-4, atol=1e-4)


def test_a_rectified_cell_answers_with_the_positive_part() -> None:
    images = pixels(2, 12)
    assert_close(block(replace(SMALL, relu=True)).responses(images), block().responses(images).clamp_min(0), **EXACT)


# -- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gradients_of_images_without_contrast_are_finite(level: float) -> None:
    images = torch.full((2, 3, 32, 32), level, requires_grad=True)
    block(Subcortical(), 32, dtype=torch.float32)(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_half_precision_around_it_changes_nothing() -> None:
    images = pixels(2, 32, dtype=torch.float32) / 100
    made = block(Subcortical(), 32, dtype=torch.float32)
    made.noise.held.settle({"noisy": "fixed"})
    with torch.autocast("cpu", torch.bfloat16):
        inside = made(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, made(images))


def test_noise_has_two_fifths_of_the_response_as_its_variance() -> None:
    """Var = F (|e| + 1e-5): 40,000 draws for each of five responses, each within five standard errors."""
    e = torch.tensor([-3.0, -0.5, 0.0, 0.02, 7.0], dtype=torch.float64).view(5, 1, 1, 1).expand(5, 4, 100, 100)
    deviation = block(Subcortical(), 100).noisy(e) - e
    ratio = deviation.flatten(1).var(1) / (0.4 * (e[:, 0, 0, 0].abs() + 1e-5))
    assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=5 * math.sqrt(2 / 40_000))
    assert deviation.flatten(1).mean(1).abs().max() < 5 * math.sqrt(0.4 * 7.00001 / 40_000)


def test_without_a_fano_factor_there_is_no_noise() -> None:
    images, made = pixels(1, 12), block(replace(SMALL, fano=0.0))
    assert torch.equal(made(images), made.responses(images))


# -- before V1 --------------------------------------------------------------------------------------


def test_v1_behind_it_sees_pixels_as_they_are_and_four_channels() -> None:
    built = network()
    assert float(built.mean) == 0
    assert float(built.std) == 1
    assert built.noisy == ["block1.lgn.noise", "block1.block.noise"]
    front = built.model.get_submodule("block1")
    assert [name for name, _ in front.named_children()] == ["lgn", "block", "bottleneck"]
    assert [name for name, _ in front.named_parameters()] == ["bottleneck.weight"]
    lgn, block, images = front.lgn, front.block, pixels(4, 32, dtype=torch.float32)
    assert isinstance(lgn, SubcorticalBlock)
    with built.noise(mode="off"):
        seen = built.features(images, ["block1.block"])["block1.block"]
    assert_close(seen, block.responses(lgn.responses(images)))


@pytest.mark.parametrize(("simple", "complex_"), [(12, 8), (256, 256), (7, 4)])
def test_each_channel_is_dealt_a_quarter_of_the_cells(simple: int, complex_: int) -> None:
    made = replace(FRONT, simple=simple, complex=complex_).build((3, 32, 32), 4).block
    shares = torch.bincount(made.sampled[:, 5].long(), minlength=4)
    assert shares.max() - shares.min() <= 1
    assert int(shares.sum()) == simple + complex_


def test_cells_are_the_same_with_and_without_it() -> None:
    """All but the channels that they see."""
    with_it, without = FRONT.build((3, 32, 32), 4).block, replace(FRONT, lgn=None).build((3, 32, 32), 4).block
    assert torch.equal(with_it.sampled[:, :5], without.sampled[:, :5])


def test_a_sum_of_blocks_has_one_before_each() -> None:
    built = network(V1Sum((FRONT, replace(FRONT, seed=1))))
    assert len(built.noisy) == 4
    assert float(built.mean) == 0
    assert built(pixels(2, 32, dtype=torch.float32)).shape == (2, 10)
    with pytest.raises(ValueError, match="give all of them an lgn, or none"):
        V1Sum((FRONT, replace(FRONT, lgn=None)))


def test_its_noise_is_a_function_of_the_key_and_the_image_s_row() -> None:
    built, images, row = network().double(), pixels(4, 32), torch.tensor([7, 3, 11, 2])

    def seen(key: Key, some: slice = slice(None)) -> Tensor:
        with built.noise(key.rows(row[some])):
            return built.features(images[some], ["block1.lgn"])["block1.lgn"]

    whole = seen(Key(5))
    assert torch.equal(seen(Key(5)), whole)
    assert_close(torch.cat([seen(Key(5), slice(0, 1)), seen(Key(5), slice(1, 4))]), whole)
    assert not torch.allclose(seen(Key(6)), whole)


def test_its_noise_is_switched_with_the_network_s() -> None:
    built, images = network(), pixels(2, 32, dtype=torch.float32)
    lgn = built.model.get_submodule("block1.lgn")

    def seen() -> Tensor:
        return built.features(images, ["block1.lgn"])["block1.lgn"]

    assert not torch.equal(seen(), seen())
    with built.noise(mode="off"):
        assert_close(seen(), lgn.responses(images))
    with built.noise(mode="fixed"):
        fixed = seen()
        assert torch.equal(seen(), fixed)
        assert not torch.allclose(fixed, lgn.responses(images))


def test_a_network_behind_it_is_trained_and_attacked_like_any() -> None:
    built, images = network(), pixels(2, 32, dtype=torch.float32).requires_grad_()
    with built.noise(Key(0).rows(torch.arange(2))):
        built(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert float(images.grad.abs().max()) > 0
    assert all(parameter.grad is not None for parameter in built.parameters())


# -- what it refuses --------------------------------------------------------------------------------


def test_images_without_colours_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"images have 1 channel\. Take lgn: null, or images of 3 channels"):
        Subcortical().build(1, 28, 28)


def test_values_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="energy=1 must lie between 0 and 1"):
        Subcortical(energy=1.0)
    with pytest.raises(ValueError, match="fano=-1 must not be negative"):
        Subcortical(fano=-1.0)
    with pytest.raises(ValueError, match="c50=0 must be positive"):
        replace(SMALL.parvo, c50=0.0)
