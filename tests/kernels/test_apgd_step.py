"""APGD's fused step and memory are their definitions: L∞ and the memory to the bit, L2 up to the order of its sums."""

from __future__ import annotations

import math

import pytest
import torch

from robust_train.kernels import apgd_step
from robust_train.kernels.ahead import compiled, offsets
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

BALLS = {"linf": Linf(8 / 255), "l2": L2(0.5)}
CONSTANTS = {"BLOCK": apgd_step.BLOCK, "BLOCKS": 4}
SHAPES = [(1, 1), (3, 2049), (2, 3, 17, 61)]


def step_of(shape: tuple[int, ...], norm: str) -> tuple[torch.Tensor, ...]:
    """Images with faces of the box; two points of ball and box; gradients with zeros; a size for each image."""
    generator = torch.Generator().manual_seed(0)
    ball = BALLS[norm]
    images = (torch.rand(shape, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    points = [images + ball.project(images, torch.randn(shape, generator=generator)) for _ in range(2)]
    slope = torch.randn(shape, generator=generator).mul(3).round()
    slope[0] *= 1e-30
    size = 2 * ball.eps / torch.arange(1, 1 + shape[0]).float()
    return images, *points, slope, size.view(-1, *[1] * (len(shape) - 1))


def close(found: torch.Tensor, wanted: torch.Tensor, norm: str) -> None:
    bound = 0.0 if norm == "linf" else 2**-22 + 2**-19
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=bound, equal_nan=True)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_its_reference(interpreted, shape, norm):
    arguments, ball = step_of(shape, norm), BALLS[norm]
    for share in (1.0, 0.75):
        found = interpreted(apgd_step.launch, *arguments, share, norm, ball.eps)
        exact = arguments if norm == "linf" else [tensor.double() for tensor in arguments]
        close(found, apgd_step.reference(*exact, share, ball), norm)


@pytest.mark.parametrize("norm", BALLS)
def test_the_step_is_the_published_algorithms(norm):
    """u = P(p + eta d), p' = P(p + a (u - p) + (1 - a) (p - before)), in the order of the formula, to the bit."""
    images, point, before, slope, size = given = step_of((3, 2, 5, 7), norm)
    kept = [tensor.clone() for tensor in given]
    ball = BALLS[norm]
    ahead = images + ball.project(images, point + size * ball.unit(slope) - images)
    moved = point + 0.75 * (ahead - point) + 0.25 * (point - before)
    wanted = images + ball.project(images, moved - images)
    assert torch.equal(apgd_step.apgd_step(*given, 0.75, ball, norm, ball.eps), wanted)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)), "it works in a buffer of its own"


@pytest.mark.parametrize("norm", BALLS)
def test_no_gradient_is_no_fault_and_no_number_stays_as_in_the_reference(interpreted, norm):
    images, point, before, slope, size = step_of((3, 300), norm)
    slope[0], slope[1, 7] = 0.0, math.nan
    ball = BALLS[norm]
    found = interpreted(apgd_step.launch, images, point, before, slope, size, 0.75, norm, ball.eps)
    close(found, apgd_step.reference(images, point, before, slope, size, 0.75, ball), norm)
    assert not found[[0, 2]].isnan().any()


def seen_of(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    point, slope, best, best_slope = (torch.rand(shape, generator=generator) for _ in range(4))
    best[0], slope[0, 0] = math.nan, math.inf  # the one that is not chosen is not looked at
    loss = torch.tensor([2.0, 1.0, math.nan, 1.0, 1.0])
    last = torch.tensor([3.0, 0.0, 0.0, math.nan, 1.0])
    return point, slope, loss, last, torch.arange(5.0), best, best_slope, torch.tensor([1.0, 1.0, 0.0, 0.5, 2.0])


@pytest.mark.parametrize("shape", [(5, 1), (5, 2049)], ids=str)
def test_what_is_remembered_is_the_references(interpreted, shape):
    given = seen_of(shape)
    for mine, other in zip(interpreted(apgd_step.launch_seen, *given), apgd_step.seen(*given), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
    rises, best, _, best_loss = apgd_step.seen(*given)
    assert rises.tolist() == [0, 2, 2, 3, 4]
    assert best_loss.tolist() == [2, 1, 0, 1, 2]
    assert torch.equal(best, torch.stack([given[0 if row in (0, 3) else 5][row] for row in range(5)]))


def test_the_layout_of_the_images_stays(interpreted):
    for norm, ball in BALLS.items():
        given = step_of((2, 3, 7, 5), norm)
        last = [t.to(memory_format=torch.channels_last) for t in given[:4]]
        found = interpreted(apgd_step.launch, *last, given[4], 0.75, norm, ball.eps)
        assert found.stride() == last[0].stride()
        close(found, apgd_step.reference(*given, 0.75, ball), norm)


def test_no_images_are_a_step_too(interpreted):
    nothing, none = torch.zeros(0, 3, 4, 4), torch.zeros(0)
    for norm, ball in BALLS.items():
        arguments = nothing, nothing, nothing, nothing, none.view(0, 1, 1, 1), 0.75
        assert interpreted(apgd_step.launch, *arguments, norm, ball.eps).shape == nothing.shape
        assert apgd_step.apgd_step(*arguments, ball, norm, ball.eps).shape == nothing.shape
    kept = interpreted(apgd_step.launch_seen, nothing, nothing, none, none, none, nothing, nothing, none)
    assert [tuple(tensor.shape) for tensor in kept] == [(0,), (0, 3, 4, 4), (0, 3, 4, 4), (0,)]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernels_compile_for_the_gpus_they_are_for(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for name, signature in apgd_step.signatures().items():
        held = {constant: value for constant, value in CONSTANTS.items() if constant in signature}
        made = compiled(getattr(apgd_step, name), signature, held, capability, fma=False)
        assert made["cubin"][:4] == b"\x7fELF"
        assert offsets(made["ttir"]) == {"i64"}
        assert "atom" not in made["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 3, 224, 224)], ids=str)
def test_on_a_gpu_the_step_is_the_definition_on_its_cpu(shape, norm):
    arguments, ball = step_of(shape, norm), BALLS[norm]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = apgd_step.apgd_step(*(tensor.cuda() for tensor in arguments), 0.75, ball, norm, ball.eps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    close(found.cpu(), apgd_step.reference(*arguments, 0.75, ball), norm)
