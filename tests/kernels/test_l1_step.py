"""The fused L1 step moves the pixels that its definition moves, and projects exactly, without a sort."""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.kernels import l1_step
from robust_train.kernels.ahead import compiled, offsets

EPS = 1.5
SHAPES = [(1, 1), (2, 2049), (2, 3, 17, 19)]
CONSTANTS = {"BLOCK": l1_step.BLOCK, "ROUNDS": l1_step.HALVINGS}


def step_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Images with faces of the box, z in ball and box, gradients in eighths: many ties, zeros of both signs."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    z = l1_step.projected(images, torch.randn(shape, generator=generator) / 10, EPS)
    return images, z, ((8 * torch.randn(shape, generator=generator)).round() / 8).to(dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape, dtype):
    images, z, gradient = step_of(shape, dtype)
    for top, size in ((60, 1.0), (10**6, 30.0)):
        found = interpreted(l1_step.launch, images, z, gradient, size, EPS, top)
        close(found, l1_step.reference(images, z, gradient, size, EPS, top))
        assert found.double().flatten(1).abs().sum(1).max() <= EPS * (1 + 1e-6)
        assert ((images + found).clamp(0, 1) - images - found).abs().max() <= 2**-23


@pytest.mark.parametrize("eps", [0.0, 1e-3, 1.0, 1e6])
def test_the_projection_is_its_reference_in_float64(interpreted, eps):
    images, _, _ = step_of((3, 2, 7, 9))
    z = torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(1))
    z[0] = 0
    close(interpreted(l1_step.launch_project, images, z, eps), l1_step.projected(images.double(), z.double(), eps))


@pytest.mark.parametrize("top", [1, 2, 3, 5])
def test_the_top_pixels_move_and_ties_with_the_last_of_them(interpreted, top):
    """|g| = 5, 3, 3, 1, 0 and 7 at a face that it points out of: `size` is shared by those that move."""
    images = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 1.0]])
    gradient = torch.tensor([[-3.0, 1.0, 5.0, 3.0, 0.0, 7.0]])
    moving = {1: [2], 2: [0, 2, 3], 3: [0, 2, 3], 5: [0, 1, 2, 3]}[top]
    wanted = torch.zeros(1, 6)
    wanted[0, moving] = 0.3 / len(moving)
    wanted[0, 0] *= -1
    found = interpreted(l1_step.launch, images, torch.zeros(1, 6), gradient, 0.3, EPS, top)
    torch.testing.assert_close(found, wanted)


def test_a_gradient_that_is_no_number_stays_visible_in_its_image_alone(interpreted):
    images, z, gradient = step_of((3, 500))
    gradient[1, 40] = math.nan
    gradient[2, 40], images[2, 40] = math.inf, 0.5
    found = interpreted(l1_step.launch, images, z, gradient, 0.1, EPS, 5)
    assert found[1].isnan().all()
    close(found, l1_step.reference(images, z, gradient, 0.1, EPS, 5))
    assert not found[[0, 2]].isnan().any()


def test_no_gradient_no_move(interpreted):
    images, z, gradient = step_of((2, 300))
    for run in (l1_step.reference, lambda *arguments: interpreted(l1_step.launch, *arguments)):
        torch.testing.assert_close(run(images, z / 2, gradient * 0, 1.0, EPS, 5), z / 2, rtol=0, atol=2**-23)


def test_the_layout_of_the_images_stays(interpreted):
    images, z, gradient = step_of((2, 3, 7, 5))
    last = images.to(memory_format=torch.channels_last)
    for found, wanted in (
        (interpreted(l1_step.launch, last, z, gradient, 1.0, EPS, 9), l1_step.reference),
        (interpreted(l1_step.launch_project, last, 3 * z, EPS), None),
    ):
        assert found.stride() == last.stride()
        plain = wanted(images, z, gradient, 1.0, EPS, 9) if wanted else l1_step.projected(images, 3 * z, EPS)
        close(found, plain)


def test_no_images_are_a_step_too(interpreted):
    nothing = torch.zeros(0, 3, 4, 4)
    assert interpreted(l1_step.launch, nothing, nothing, nothing, 0.1, EPS, 3).shape == nothing.shape
    assert interpreted(l1_step.launch_project, nothing, nothing, EPS).shape == nothing.shape
    assert l1_step.l1_step(nothing, nothing, nothing, 0.1, EPS, 3).shape == nothing.shape


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_the_gpus_they_are_for(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, signature in (
        (l1_step.kernel, l1_step.signature(torch.bfloat16)),
        (l1_step.project, l1_step.project_signature()),
    ):
        made = compiled(kernel, signature, CONSTANTS, capability)
        assert made["cubin"][:4] == b"\x7fELF"
        assert offsets(made["ttir"]) == {"i64"}
        assert {"min.NaN.f32", "max.NaN.f32"} <= set(made["ptx"].split())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 224, 224)], ids=str)
def test_on_a_gpu_the_step_is_the_definition_on_its_cpu(shape):
    images, z, gradient = step_of(shape)
    fused = l1_step.l1_step(images.cuda(), z.cuda(), gradient.cuda(), 1.0, EPS, 60)
    close(fused.cpu(), l1_step.reference(images, z, gradient, 1.0, EPS, 60))
