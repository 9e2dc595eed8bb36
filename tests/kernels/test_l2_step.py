"""The fused L2 step is its definition up to the order of its sums, and safe where there is no gradient."""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.kernels import l2_step
from robust_train.kernels.ahead import compiled, offsets

EPS = 0.5
SHAPES = [(1, 1), (3, 2047), (2, 2048), (3, 3, 17, 61), (2, 3, 41, 43)]
CONSTANTS = {"BLOCK": l2_step.BLOCK, "BLOCKS": 4}


def step_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Images on the box's faces and inside it, z inside the ball, gradients from 1e-30 to 1e30 of one row."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(shape, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    z = torch.randn(shape, generator=generator)
    z = z * (0.9 * EPS / z.flatten(1).norm(dim=1)).view(-1, *[1] * (z.dim() - 1))
    gradient = torch.randn(shape, generator=generator)
    if dtype == torch.float32:
        gradient[0] *= 1e-30
        gradient[-1] *= 1e30
    return images, z, gradient.to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """16 roundings of the radius and one of the image, in float32 against float64."""
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=EPS * 2**-20 + 2**-23, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape, dtype):
    images, z, gradient = step_of(shape, dtype)
    for size, eps in ((0.1, EPS), (2 * EPS, EPS), (0.0, EPS / 2), (0.1, 0.0)):
        exact = l2_step.reference(images.double(), z.double(), gradient.double(), size, eps)
        close(l2_step.reference(images, z, gradient, size, eps), exact)
        close(interpreted(l2_step.launch, images, z, gradient, size, eps), exact)


@pytest.mark.parametrize("run", ["reference", "kernel"])
def test_no_gradient_no_move_and_the_least_one_is_enough(interpreted, run):
    """Rows without gradient, with 0 and -0, and of one entry of the least number above 0, whose inverse overflows."""
    images, z = torch.full((3, 8), 0.5), torch.zeros(3, 8)
    z[0, 0] = 0.25
    gradient = torch.zeros(3, 8)
    gradient[1] = -0.0
    gradient[2, 3] = 2.0**-149
    arguments = images, z, gradient, 0.125, EPS
    moved = l2_step.reference(*arguments) if run == "reference" else interpreted(l2_step.launch, *arguments)
    wanted = z.clone()
    wanted[2, 3] = 0.125
    torch.testing.assert_close(moved, wanted)
    assert torch.equal(moved[:2], z[:2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stays_visible_in_its_image_alone(interpreted, bad):
    images, z, gradient = step_of((3, 5000))
    gradient[1, 4000] = bad
    for moved in (
        l2_step.reference(images, z, gradient, 0.1, EPS),
        interpreted(l2_step.launch, images, z, gradient, 0.1, EPS),
    ):
        assert moved[1].isnan().all()
        assert not moved[[0, 2]].isnan().any()


def test_the_layout_of_the_images_stays(interpreted):
    images, z, gradient = (t.to(memory_format=torch.channels_last) for t in step_of((2, 3, 7, 5)))
    moved = interpreted(l2_step.launch, images, z, gradient, 0.1, EPS)
    assert moved.stride() == images.stride()
    close(moved, l2_step.reference(images.double(), z.double(), gradient.double(), 0.1, EPS))


def test_no_images_are_a_step_too(interpreted):
    nothing = torch.zeros(0, 3, 4, 4)
    assert interpreted(l2_step.launch, nothing, nothing, nothing, 0.1, EPS).shape == nothing.shape
    assert l2_step.l2_step(nothing, nothing, nothing, 0.1, EPS).shape == nothing.shape


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_the_gpus_they_are_for(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for dtype in (torch.float32, torch.bfloat16):
        for kernel, signature, constants in (
            (l2_step.measure, l2_step.measure_signature(dtype), {"BLOCK": l2_step.BLOCK}),
            (l2_step.kernel, l2_step.signature(dtype), CONSTANTS),
        ):
            made = compiled(kernel, signature, constants, capability)
            assert made["cubin"][:4] == b"\x7fELF"
            assert offsets(made["ttir"]) == {"i64"}
            assert "atom" not in made["ptx"]  # sums in one order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 224, 224)], ids=str)
def test_on_a_gpu_the_step_is_the_definition_on_its_cpu(shape):
    images, z, gradient = step_of(shape)
    fused = l2_step.l2_step(images.cuda(), z.cuda(), gradient.cuda(), 0.1, EPS)
    close(fused.cpu(), l2_step.reference(images.double(), z.double(), gradient.double(), 0.1, EPS))
