"""The fused L∞ step is its definition, to the bit, and compiles for the GPUs it is for.

bytes a pixel    16 (fp32 gradient), 14 (half)
"""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.kernels import linf_step
from robust_train.kernels.ahead import compiled, offsets
from robust_train.kernels.layout import laid

SHAPES = [(1,), (1023,), (1024,), (3, 17, 19), (2, 3, 33, 31)]
HALF = 3 / 255


def step_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Images on the box's faces and inside it, z inside the ball, and gradients with every special value."""
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand(shape, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    z = (2 * torch.rand(shape, generator=generator) - 1) * HALF
    gradient = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=dtype)
    if gradient.numel() > len(special):
        gradient.view(-1)[: len(special)] = special
    return images, z, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape, dtype):
    images, z, gradient = step_of(shape, dtype)
    for size, eps in ((1 / 255, HALF), (2 * HALF, HALF), (0.1, 0.0)):
        fused = interpreted(linf_step.launch, images, z, gradient, size, eps)
        plain = linf_step.reference(images, z, gradient, size, eps)
        assert fused.dtype == plain.dtype == torch.float32
        torch.testing.assert_close(fused, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
def test_the_layout_of_the_images_stays(interpreted, mixed):
    """channels_last without a copy; of tensors in other layouts a copy is made, and nothing else changes."""
    images, z, gradient = step_of((2, 3, 7, 5), torch.float32)
    last = images.to(memory_format=torch.channels_last)
    there = (last, z, gradient) if mixed else (last, *(t.to(memory_format=torch.channels_last) for t in (z, gradient)))
    same = [a.data_ptr() == b.data_ptr() for a, b in zip(there, laid(*there), strict=True)]
    assert same == [True, not mixed, not mixed]
    fused = interpreted(linf_step.launch, *there, 1 / 255, HALF)
    assert fused.stride() == last.stride()
    plain = linf_step.reference(images, z, gradient, 1 / 255, HALF)
    torch.testing.assert_close(fused, plain, rtol=0, atol=0, equal_nan=True)


def test_the_reference_leaves_what_it_is_given():
    """It works in place, on a buffer of its own."""
    given = step_of((3, 17, 19), torch.float32)
    before = [tensor.clone() for tensor in given]
    linf_step.reference(*given, 1 / 255, HALF)
    for tensor, then in zip(given, before, strict=True):
        torch.testing.assert_close(tensor, then, rtol=0, atol=0, equal_nan=True)


def test_no_pixels_are_a_step_too(interpreted):
    nothing = torch.zeros(0, 3, 4, 4)
    assert interpreted(linf_step.launch, nothing, nothing, nothing, 0.1, 0.1).shape == nothing.shape
    assert linf_step.linf_step(nothing, nothing, nothing, 0.1, 0.1).shape == nothing.shape


@pytest.mark.parametrize("run", ["reference", "kernel"])
def test_a_step_is_that_of_the_closed_form_at_each_corner(interpreted, run):
    """Middle of the box: z moves by size and stops at eps. At a face of the box: not beyond. No gradient: no move."""
    images = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.25])
    z = torch.tensor([0.0, 0.0, 0.125, -0.125, 0.0, 0.0, 0.0625])
    gradient = torch.tensor([1e-30, -7.0, 5.0, -5.0, 1.0, -math.inf, -0.0])
    wanted = torch.tensor([0.0625, -0.0625, 0.125, -0.125, 0.0, 0.0, 0.0625])
    arguments = images, z, gradient, 0.0625, 0.125
    moved = linf_step.reference(*arguments) if run == "reference" else interpreted(linf_step.launch, *arguments)
    assert torch.equal(moved, wanted)


def test_a_gradient_that_is_no_number_stays_visible(interpreted):
    images, z, gradient = step_of((64,), torch.bfloat16)
    for moved in (
        linf_step.reference(images, z, gradient, 0.1, HALF),
        interpreted(linf_step.launch, images, z, gradient, 0.1, HALF),
    ):
        assert torch.equal(moved.isnan(), gradient.isnan())
        assert moved.isnan().sum() == 1


def test_on_a_cpu_the_step_is_the_definition_in_any_precision():
    images, z, gradient = (tensor.double() for tensor in step_of((3, 17, 19), torch.float32))
    moved = linf_step.linf_step(images, z, gradient, 1 / 255, HALF)
    assert moved.dtype == torch.float64
    assert moved.nan_to_num().abs().max() <= HALF * (1 + 1e-12)
    inside = images + moved.nan_to_num()
    assert inside.min() >= 0
    assert inside.max() <= 1


@pytest.mark.parametrize("dtype", linf_step.TYPES, ids=str)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_for_the_gpus_it_is_for(capability, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = compiled(linf_step.kernel, linf_step.signature(dtype), {"BLOCK": linf_step.BLOCK}, capability)
    assert made["cubin"][:4] == b"\x7fELF"
    assert offsets(made["ttir"]) == {"i64"}  # 2^31 pixels and more
    # the interpreter's clamp keeps a NaN in any case, a GPU's min and max only when told to
    assert {"min.NaN.f32", "max.NaN.f32"} <= set(made["ptx"].split())
    assert not {"min.f32", "max.f32"} & set(made["ptx"].split())


def test_an_interpreted_kernel_is_not_compiled_in_silence(interpreted):
    with pytest.raises(ValueError, match="unset TRITON_INTERPRET"):
        interpreted(compiled_here)


def compiled_here() -> object:
    return compiled(linf_step.kernel, linf_step.signature(), {"BLOCK": linf_step.BLOCK}, 90)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", linf_step.TYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (3 * 224 * 224 + 1,)], ids=str)
def test_on_a_gpu_the_step_is_the_definition_on_its_cpu(shape, dtype):
    images, z, gradient = step_of(shape, dtype)
    fused = linf_step.linf_step(images.cuda(), z.cuda(), gradient.cuda(), 1 / 255, HALF)
    plain = linf_step.reference(images, z, gradient, 1 / 255, HALF)
    torch.testing.assert_close(fused.cpu(), plain, rtol=0, atol=0, equal_nan=True)
