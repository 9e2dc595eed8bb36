"""The fused pyramid step is its definition: to the bit but for signs that rounding decides."""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.kernels import pyramid_step
from robust_train.kernels.ahead import compiled, offsets
from robust_train.threats.pyramid import Pyramid

EPS = 3 / 255
PUBLISHED = ((32, 16, 1), (20.0, 10.0, 1.0))
CASES = [  # images, patches, multipliers
    ((2, 3, 64, 32), *PUBLISHED),
    ((1, 2, 12, 18), (3, 2, 1), (20.0, 10.0, 1.0)),  # patches that do not nest: tiles of 6
    ((2, 1, 7, 14), (7, 1), (20.0, 0.0)),
    ((1, 1, 40, 40), (40,), (-5.0,)),  # one patch, in two blocks
    ((3, 2, 1, 5), (1, 1), (3.0, 1.0)),
]


def step_of(shape: tuple[int, ...], patches: tuple[int, ...], dtype: torch.dtype, whole: bool = True):
    """Images with faces of the box, levels in the ball and beyond, gradients of small whole numbers: exact sums."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    z = tuple(
        EPS * 1.2 * (2 * torch.rand(*shape[:2], shape[2] // s, shape[3] // s, generator=generator) - 1) for s in patches
    )
    z[0].view(-1)[::2] = 0  # faces of the box stay faces: ties
    gradient = torch.randn(shape, generator=generator)
    return images, z, ((4 * gradient).round() if whole else gradient).to(dtype)


def same(found, wanted) -> None:
    for mine, other in zip((*found[0], found[1]), (*wanted[0], wanted[1]), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("each", [True, False], ids=["each", "sum"])
@pytest.mark.parametrize(("shape", "patches", "multipliers"), CASES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape, patches, multipliers, each, dtype):
    images, z, gradient = step_of(shape, patches, dtype)
    arguments = images, z, gradient, 1 / 255, EPS, patches, multipliers, each
    same(interpreted(pyramid_step.launch, *arguments), pyramid_step.reference(*arguments))


@pytest.mark.parametrize("each", [True, False], ids=["each", "sum"])
def test_ties_at_the_boxs_faces_pass_half_of_the_gradient(interpreted, each):
    """(3 + 3) / 2 against 1.4 + 1.4 and 1.6 + 1.6."""
    images = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    for inside, sign in ((-2.0, -1), (-1.4, 1), (-1.6, -1)):
        gradient = torch.tensor([[3.0, 3.0], [inside, inside]]).view(1, 1, 2, 2)
        zero = (torch.zeros(1, 1, 1, 1),)
        (level,), _ = interpreted(pyramid_step.launch, images, zero, gradient, 0.004, EPS, (2,), (20.0,), each)
        assert level.item() == pytest.approx(sign * 0.004)


def test_only_signs_that_rounding_decides_differ(interpreted):
    images, z, gradient = step_of((1, 3, 32, 32), (32, 16, 1), torch.float32, whole=False)
    rest = 1 / 255, EPS, *PUBLISHED, True
    levels, image = interpreted(pyramid_step.launch, images, z, gradient, *rest)
    wanted, _ = pyramid_step.reference(images, z, gradient, *rest)
    for patch, mine, other in zip((32, 16, 1), levels, wanted, strict=True):
        total = gradient.double().view(1, 3, 32 // patch, patch, 32 // patch, patch)
        apart = mine != other
        assert (total.sum((3, 5)).abs()[apart] <= total.abs().sum((3, 5))[apart] * patch**2 * 2**-24).all()
    assert torch.equal(image, pyramid_step.composed(images, levels, EPS, *PUBLISHED, True))


def test_a_gradient_that_is_no_number_stays_visible_in_its_patches(interpreted):
    images, z, gradient = step_of((1, 1, 8, 8), (4, 1), torch.float32)
    images[0, 0, 1, 6] = 0.5
    z = tuple(torch.zeros_like(level) for level in z)
    gradient[0, 0, 1, 6] = math.nan
    arguments = images, z, gradient, 1 / 255, EPS, (4, 1), (5.0, 1.0), True
    found = interpreted(pyramid_step.launch, *arguments)
    same(found, pyramid_step.reference(*arguments))
    assert found[0][0].isnan().view(-1).tolist() == [False, True, False, False]
    assert found[0][1].isnan().sum() == 1


def test_the_layout_of_the_images_stays(interpreted):
    images, z, gradient = step_of((2, 3, 8, 12), (4, 2), torch.float32)
    rest = 1 / 255, EPS, (4, 2), (5.0, 1.0), True
    last = images.to(memory_format=torch.channels_last)
    found = interpreted(pyramid_step.launch, last, z, gradient, *rest)
    assert found[1].stride() == last.stride()
    same(found, pyramid_step.reference(images, z, gradient, *rest))


def test_no_images_are_a_step_too(interpreted):
    nothing = torch.zeros(0, 3, 4, 4)
    arguments = nothing, (torch.zeros(0, 3, 2, 2),), nothing, 0.1, 0.1, (2,), (1.0,), True
    for (level,), image in (interpreted(pyramid_step.launch, *arguments), pyramid_step.pyramid_step(*arguments)):
        assert level.shape == (0, 3, 2, 2)
        assert image.shape == nothing.shape


def test_the_image_that_a_step_composed_is_taken_once_and_for_these_images_alone(monkeypatch):
    threat = Pyramid(EPS, (4, 1), (5.0, 1.0))
    images, z, gradient = step_of((2, 1, 8, 8), (4, 1), torch.float32)
    moved = threat.step(images, z, gradient, 1 / 255)
    plain = threat.apply(images, tuple(moved))
    calls = []
    monkeypatch.setattr("robust_train.threats.pyramid.composed", lambda *arguments: calls.append(arguments) or plain)
    assert torch.equal(threat.apply(images, moved), plain)
    assert not calls
    threat.apply(images.clone(), moved)
    Pyramid(EPS / 2, (4, 1), (5.0, 1.0)).apply(images, moved)
    assert len(calls) == 2


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_for_the_gpus_it_is_for(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for dtype in (torch.float32, torch.bfloat16):
        constants = pyramid_step.constants(*PUBLISHED, dtype == torch.float32)
        made = compiled(pyramid_step.kernel, pyramid_step.signature(3, dtype), constants, capability, fma=False)
        assert made["cubin"][:4] == b"\x7fELF"
        assert offsets(made["ttir"]) == {"i64"}
        assert "fma" not in made["ptx"]
        assert "atom" not in made["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("each", [True, False], ids=["each", "sum"])
@pytest.mark.parametrize(("shape", "patches", "multipliers"), [*CASES, ((4, 3, 224, 224), *PUBLISHED)], ids=str)
def test_on_a_gpu_the_step_is_the_definition_on_its_cpu(shape, patches, multipliers, each):
    images, z, gradient = step_of(shape, patches, torch.float32)
    rest = 1 / 255, EPS, patches, multipliers, each
    levels, image = pyramid_step.pyramid_step(images.cuda(), tuple(t.cuda() for t in z), gradient.cuda(), *rest)
    same((tuple(t.cpu() for t in levels), image.cpu()), pyramid_step.reference(images, z, gradient, *rest))
