"""The fused random start draws the words of the keyed generator, to the bit."""

from __future__ import annotations

import pytest
import torch

from robust_train.kernels import linf_start
from robust_train.kernels.ahead import compiled, offsets
from robust_train.keyed import Key, bits, uniform

SEEDS = [0, 1, 0x243F6A8885A308D3, 0xA4093822299F31D0, 0xFFFFFFFFFFFFFFFF]
SHAPES = [(1, 1), (3, 5), (2, 1023), (2, 1025), (3, 3, 17, 19)]


@pytest.mark.parametrize("seed", SEEDS, ids=hex)
def test_the_kernels_words_are_the_keyed_words(interpreted, seed):
    """On grey images with eps = 1/2 the start is u - 1/2 exactly: every bit of u shows."""
    grey = torch.full((3, 2, 515), 0.5)
    row = torch.tensor([0, 7, (5 << 32) + 0x80000001])
    key = Key(seed).rows(row)
    z = interpreted(linf_start.launch, grey, key, 0.5)
    assert torch.equal(z, uniform(key, grey.shape) - 0.5)
    assert torch.equal(((z + 0.5) * 2**24).long(), bits(key, grey.shape) >> 8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape):
    images = torch.linspace(0, 1, steps=int(torch.Size(shape).numel())).view(shape)
    key = Key(3).of("start")
    for eps in (8 / 255, 0.0, 1.0):
        assert torch.equal(interpreted(linf_start.launch, images, key, eps), linf_start.reference(images, key, eps))


def test_the_words_go_to_the_pixels_in_any_layout(interpreted):
    images = torch.rand(3, 5, 17, 19, generator=torch.Generator().manual_seed(0))
    laid, key = images.to(memory_format=torch.channels_last), Key(3).of("start")
    found = interpreted(linf_start.launch, laid, key, 0.1)
    assert found.stride() == laid.stride()
    assert torch.equal(found, linf_start.reference(images, key, 0.1))


def test_a_start_lies_in_the_ball_and_in_the_box():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    z = linf_start.linf_start(images, Key(1), 8 / 255)
    assert z.abs().max() <= 8 / 255 + 1e-7
    assert (images + z).min() >= 0
    assert (images + z).max() <= 1


def test_no_images_start_nowhere(interpreted):
    assert interpreted(linf_start.launch, torch.zeros(0, 3, 4, 4), Key(1), 0.1).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("fma", "last"), [(False, 1), (True, 1), (False, 3)])
def test_the_kernel_compiles_for_the_gpus_it_is_for(capability, fma, last, tmp_path, monkeypatch):
    """Fused, x + (2u - 1) eps would round once where the definition rounds twice: so it is launched without."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = compiled(
        linf_start.kernel, linf_start.signature(), {"BLOCK": linf_start.BLOCK, "LAST": last}, capability, fma
    )
    assert made["cubin"][:4] == b"\x7fELF"
    assert ("fma" in made["ptx"]) == fma
    assert offsets(made["ttir"]) == {"i64"}


def test_the_kernel_is_launched_without_fused_multiply_add(monkeypatch):
    seen = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: seen.update(options, grid=grid)

    monkeypatch.setattr(linf_start, "kernel", Kernel())
    linf_start.launch(torch.zeros(3, 5000), Key(1), 0.1)
    assert seen == {"BLOCK": 256, "LAST": 1, "enable_fp_fusion": False, "grid": (3, 5)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("seed", SEEDS, ids=hex)
def test_on_a_gpu_the_start_is_the_definition_on_its_cpu(seed):
    images = torch.rand(5, 3, 33, 31, generator=torch.Generator().manual_seed(0))
    key = Key(seed).rows(torch.tensor([0, 9, 4, (3 << 32) + 1, 2]))
    fused = linf_start.linf_start(images.cuda(), key, 8 / 255)
    assert torch.equal(fused.cpu(), linf_start.reference(images, key, 8 / 255))
