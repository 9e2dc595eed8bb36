"""APGD's step inside an L∞ or L2 ball and the box, and what it remembers, without a host sync.

    ahead = x + P(p + eta d(g) − x),    p' = x + P(p + a (ahead − p) + (1 − a) (p − before) − x)
    better = loss > best loss:    best, its slope, its loss;    rises += loss > last loss

P brings a perturbation into ball and box; d(g) = sign g or g / ||g||₂. For L∞ one pass: reads x, p, before, g and
writes p', 20 bytes a pixel in fp32. For L2 three, since the second projection's norm follows the first's clip: 12 read
for the sums of the first; 16 read and 4 written for the sums of the second; 8 read and 4 written: 44. What is
remembered: of point and best only the chosen one is read, 16 bytes for both images and slopes.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from robust_train.kernels.layout import laid

try:  # Triton is an extra: without it, and on a CPU, the reference runs
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

BLOCK = 2048
Norm = Literal["linf", "l2"]


class Steepest(Protocol):
    """What a ball answers: the nearest perturbation in ball and box, and the direction of a gradient."""

    def project(self, images: Tensor, z: Tensor) -> Tensor: ...
    def unit(self, gradient: Tensor) -> Tensor: ...


def apgd_step(
    images: Tensor,
    point: Tensor,
    before: Tensor,
    slope: Tensor,
    size: Tensor,
    share: float,
    ball: Steepest,
    norm: Norm | None,
    eps: float,
) -> Tensor:
    """`reference`, fused on CUDA in fp32 where `norm` says which ball it is. L∞ equal to the bit, L2 up to sums."""
    tensors = images, point, before, slope, size
    if triton is None or norm is None or not images.is_cuda or any(t.dtype != torch.float32 for t in tensors):
        return reference(images, point, before, slope, size, share, ball)
    return launch(images, point, before, slope, size, share, norm, eps)


def reference(
    images: Tensor, point: Tensor, before: Tensor, slope: Tensor, size: Tensor, share: float, ball: Steepest
) -> Tensor:
    """The definition: the next point [B, ...]. size: eta, [B, 1, ...]; share: a."""
    ahead = images + ball.project(images, (size * ball.unit(slope)).add_(point).sub_(images))
    moved = ahead.sub_(point).mul_(share).add_(point).add_((point - before).mul_(1 - share)).sub_(images)
    return images + ball.project(images, moved)


def apgd_seen(
    point: Tensor,
    slope: Tensor,
    loss: Tensor,
    last: Tensor,
    rises: Tensor,
    best: Tensor,
    best_slope: Tensor,
    best_loss: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`seen`, fused on CUDA in fp32. Equal to it to the bit."""
    tensors = point, slope, loss, last, rises, best, best_slope, best_loss
    if triton is None or not point.is_cuda or any(t.dtype != torch.float32 for t in tensors):
        return seen(*tensors)
    return launch_seen(*tensors)


def seen(
    point: Tensor,
    slope: Tensor,
    loss: Tensor,
    last: Tensor,
    rises: Tensor,
    best: Tensor,
    best_slope: Tensor,
    best_loss: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition: (rises, best, best_slope, best_loss) after `point` [B, ...] with its `loss` [B]."""
    better = loss > best_loss
    chosen = better.view(-1, *[1] * (point.dim() - 1))
    return (
        rises + (loss > last),
        torch.where(chosen, point, best),
        torch.where(chosen, slope, best_slope),
        torch.where(better, loss, best_loss),
    )


def launch(
    images: Tensor,
    point: Tensor,
    before: Tensor,
    slope: Tensor,
    size: Tensor,
    share: float,
    norm: Norm,
    eps: float,
) -> Tensor:
    """The kernels, on the device of the images (on CPU tensors in Triton's interpreter)."""
    images, point, before, slope = laid(images, point, before, slope)
    out, size = torch.empty_like(images), size.reshape(-1).contiguous()
    if not images.numel():
        return out
    count = images.numel() // len(images)
    blocks = triton.cdiv(count, BLOCK)
    grid, fixed = (len(images), blocks), {"BLOCK": BLOCK, "enable_fp_fusion": False}  # the bits of the reference
    with torch.cuda.device_of(images):  # else Triton launches on cuda:0
        if norm == "linf":
            kernel[grid](images, point, before, slope, size, out, count, share, 1 - share, eps, **fixed)
            return out
        first = torch.empty(len(images), 4, blocks, device=images.device)
        second, padded = torch.empty(len(images), blocks, device=images.device), triton.next_power_of_2(blocks)
        measure[grid](images, point, slope, first, count, blocks, **fixed)
        move[grid](
            images, point, before, slope, size, first, out, second, count, blocks, share, 1 - share, eps,
            BLOCKS=padded, **fixed,
        )  # fmt: skip
        draw_in[grid](images, out, second, count, blocks, eps, BLOCKS=padded, **fixed)
    return out


def launch_seen(
    point: Tensor,
    slope: Tensor,
    loss: Tensor,
    last: Tensor,
    rises: Tensor,
    best: Tensor,
    best_slope: Tensor,
    best_loss: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel of what is remembered. New tensors: the old ones may be the image or the point themselves."""
    point, slope, best, best_slope = laid(point, slope, best, best_slope)
    loss, last, rises, best_loss = (t.contiguous() for t in (loss, last, rises, best_loss))
    out = torch.empty_like(rises), torch.empty_like(point), torch.empty_like(point), torch.empty_like(best_loss)
    if not point.numel():
        return out
    count = point.numel() // len(point)
    with torch.cuda.device_of(point):
        remember[(len(point), triton.cdiv(count, BLOCK))](
            point, slope, loss, last, rises, best, best_slope, best_loss, *out, count, BLOCK=BLOCK
        )
    return out


def signatures() -> dict[str, dict[str, str]]:
    """The kernels' argument types by name, for compiling them ahead of time."""

    def of(pointers: str, numbers: str, constants: str = "BLOCK") -> dict[str, str]:
        types = {name: "i32" if name in ("count", "blocks") else "fp32" for name in numbers.split()}
        held = dict.fromkeys(constants.split(), "constexpr")
        return {f"{name}_ptr": "*fp32" for name in pointers.split()} | types | held

    return {
        "kernel": of("x p b g size out", "count share rest eps"),
        "measure": of("x p g sum", "count blocks"),
        "move": of("x p b g size sum out second", "count blocks share rest eps", "BLOCK BLOCKS"),
        "draw_in": of("x out second", "count blocks eps", "BLOCK BLOCKS"),
        "remember": of("p g loss last rises best slope most rises_out best_out slope_out most_out", "count"),
    }


if triton is not None:
    from robust_train.kernels.l2_step import leave, shrunk, summed

    @triton.jit
    def kernel(
        x_ptr, p_ptr, b_ptr, g_ptr, size_ptr, out_ptr,  # [B, count] in one layout; size [B]
        count, share, rest, eps, BLOCK: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        x, p = tl.load(x_ptr + at, inside, 0.0), tl.load(p_ptr + at, inside, 0.0)
        b, g = tl.load(b_ptr + at, inside, 0.0), tl.load(g_ptr + at, inside, 0.0)
        sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, 0.0))  # of NaN 0, as the attack's goal leaves it
        z = tl.clamp(tl.load(size_ptr + image) * sign + p - x, -eps, eps, propagate_nan=tl.PropagateNan.ALL)
        moved = blended(x, p, b, boxed(x, z), share, rest)
        moved = tl.clamp(moved, -eps, eps, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out_ptr + at, x + boxed(x, moved), inside)

    @triton.jit
    def measure(
        x_ptr, p_ptr, g_ptr, sum_ptr,  # [B, count] in one layout; sums [B, 4, blocks] out
        count, blocks, BLOCK: tl.constexpr,
    ):  # fmt: skip
        image, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        z = tl.load(p_ptr + at, inside, 0.0) - tl.load(x_ptr + at, inside, 0.0)
        leave(sum_ptr, z, tl.load(g_ptr + at, inside, 0.0), image, block, blocks)

    @triton.jit
    def move(
        x_ptr, p_ptr, b_ptr, g_ptr, size_ptr, sum_ptr, out_ptr, second_ptr,  # second [B, blocks] out; out: p' - x
        count, blocks, share, rest, eps, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    ):  # fmt: skip
        image, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        largest, slope, stride, reach = summed(sum_ptr, image, blocks, tl.load(size_ptr + image), BLOCKS)
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        x, p = tl.load(x_ptr + at, inside, 0.0), tl.load(p_ptr + at, inside, 0.0)
        b, g = tl.load(b_ptr + at, inside, 0.0), tl.load(g_ptr + at, inside, 0.0)
        z = (p - x + stride * (g / largest / slope)) * shrunk(reach, eps)
        moved = blended(x, p, b, boxed(x, z), share, rest)
        tl.store(out_ptr + at, moved, inside)
        tl.store(second_ptr + image * blocks + block, tl.sum(tl.where(inside, moved * moved, 0.0), 0))

    @triton.jit
    def draw_in(
        x_ptr, out_ptr, second_ptr,
        count, blocks, eps, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(0).to(tl.int64)
        each = tl.arange(0, BLOCKS).to(tl.int64)
        reach = tl.sqrt_rn(tl.sum(tl.load(second_ptr + image * blocks + each, each < blocks, 0.0), 0))
        at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        x = tl.load(x_ptr + at, inside, 0.0)
        tl.store(out_ptr + at, x + boxed(x, tl.load(out_ptr + at, inside, 0.0) * shrunk(reach, eps)), inside)

    @triton.jit
    def remember(
        p_ptr, g_ptr, loss_ptr, last_ptr, rises_ptr, best_ptr, slope_ptr, most_ptr,  # [B, count] and [B]
        rises_out_ptr, best_out_ptr, slope_out_ptr, most_out_ptr,
        count, BLOCK: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        row = tl.zeros_like(at) + image
        better = tl.load(loss_ptr + row) > tl.load(most_ptr + row)  # a loss that is no number is no better
        new, old = inside & better, inside & (better == 0)
        best = tl.where(better, tl.load(p_ptr + at, new, 0.0), tl.load(best_ptr + at, old, 0.0))
        slope = tl.where(better, tl.load(g_ptr + at, new, 0.0), tl.load(slope_ptr + at, old, 0.0))
        tl.store(best_out_ptr + at, best, inside)
        tl.store(slope_out_ptr + at, slope, inside)
        if tl.program_id(1) == 0:
            loss, most = tl.load(loss_ptr + image), tl.load(most_ptr + image)
            rises = tl.load(rises_ptr + image) + (loss > tl.load(last_ptr + image)).to(tl.float32)
            tl.store(rises_out_ptr + image, rises)
            tl.store(most_out_ptr + image, tl.where(loss > most, loss, most))

    @triton.jit
    def boxed(x, z):
        """The perturbation that keeps the image in [0, 1]."""
        return tl.clamp(x + z, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL) - x

    @triton.jit
    def blended(x, p, b, z, share, rest):
        """The step to x + z and the last move, as a perturbation."""
        return p + share * (x + z - p) + rest * (p - b) - x
