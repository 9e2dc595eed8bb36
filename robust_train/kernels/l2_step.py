"""One projected ascent step inside an L2 ball and the pixel box, in two passes over memory.

    u = z + size·g / ||g||₂,    z' = clip(x + u·min(1, eps / ||u||₂), 0, 1) − x

The first pass reads z and g and leaves, for each block of an image, max |g|, Σ (g / max)², Σ z g / max and Σ z². Of
these ||u||² = ||z||² + 2 size z·g / ||g|| + size² follows without a pass of its own. The second reads x, z, g and
writes z': 24 bytes a pixel in fp32, 16 where z and g of the batch stay in the cache. Sums go by blocks in one order: no
atomics, the same bits each time.

g is divided by its largest entry first: squares of a confident network's gradients underflow in float32. An image
without gradient stays where it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust_train.kernels.layout import laid
from robust_train.kernels.linf_step import TYPES

try:  # Triton is an extra: without it, and on a CPU, the reference runs
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

BLOCK = 2048
TINY = 2.0**-126  # the least normal float32: its inverse is finite


def l2_step(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """`reference`, fused on CUDA in fp32. Equal to it up to the order of the sums."""
    float32 = images.dtype == z.dtype == torch.float32
    if triton is None or not images.is_cuda or not float32 or gradient.dtype not in TYPES:
        return reference(images, z, gradient, size, eps)
    return launch(images, z, gradient, size, eps)


def reference(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """The definition. [B, ...]; images and z of one dtype, g of any. A NaN in an image's g is all over its z'."""
    u = unit(gradient.to(z.dtype)).mul_(size).add_(z)
    u.mul_(_rows((eps / norm(u)).clamp(max=1), u))
    return u.add_(images).clamp_(0, 1).sub_(images)


def unit(gradient: Tensor) -> Tensor:
    """g / ||g||₂ of each row, 0 where g is; a new tensor."""
    largest = gradient.flatten(1).abs().amax(1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    even = gradient * _rows(1 / largest, gradient)
    return even.mul_(_rows(1 / norm(even), even))


def norm(tensor: Tensor) -> Tensor:
    """[B, 1] Euclidean norms, those of zero as 1: what is divided by them is zero too."""
    length = tensor.flatten(1).norm(dim=1, keepdim=True)
    return length.masked_fill(length == 0, 1)


def _rows(factor: Tensor, like: Tensor) -> Tensor:
    """[B, 1] as [B, 1, ...]."""
    return factor.view(-1, *[1] * (like.dim() - 1))


def launch(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """The kernels, on the device of the images (on CPU tensors in Triton's interpreter)."""
    images, z, gradient = laid(images, z, gradient)
    out = torch.empty_like(images)
    if not images.numel():
        return out
    count = images.numel() // len(images)
    blocks = triton.cdiv(count, BLOCK)
    sums = torch.empty(len(images), 4, blocks, device=images.device)
    with torch.cuda.device_of(images):  # else Triton launches on cuda:0
        grid = (len(images), blocks)
        measure[grid](z, gradient, sums, count, blocks, BLOCK=BLOCK)
        padded = triton.next_power_of_2(blocks)
        kernel[grid](images, z, gradient, sums, out, count, blocks, size, eps, BLOCK=BLOCK, BLOCKS=padded)
    return out


def signature(gradient: torch.dtype = torch.float32) -> dict[str, str]:
    """The kernel's argument types, for compiling it ahead of time."""
    pointers = {"x_ptr": "*fp32", "z_ptr": "*fp32", "g_ptr": TYPES[gradient], "sum_ptr": "*fp32", "out_ptr": "*fp32"}
    numbers = {"count": "i32", "blocks": "i32", "size": "fp32", "eps": "fp32"}
    return pointers | numbers | {"BLOCK": "constexpr", "BLOCKS": "constexpr"}


def measure_signature(gradient: torch.dtype = torch.float32) -> dict[str, str]:
    """The first pass's."""
    pointers = {"z_ptr": "*fp32", "g_ptr": TYPES[gradient], "sum_ptr": "*fp32"}
    return pointers | {"count": "i32", "blocks": "i32", "BLOCK": "constexpr"}


if triton is not None:

    @triton.jit
    def measure(
        z_ptr, g_ptr, sum_ptr,  # z, g [B, count] in one layout; sums [B, 4, blocks] out
        count, blocks, BLOCK: tl.constexpr,
    ):  # fmt: skip
        image, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        z = tl.load(z_ptr + image * count + at, inside, 0.0)
        g = tl.load(g_ptr + image * count + at, inside, 0.0).to(tl.float32)
        leave(sum_ptr, z, g, image, block, blocks)

    @triton.jit
    def kernel(
        x_ptr, z_ptr, g_ptr, sum_ptr, out_ptr,  # x, z, g, out [B, count] in one layout; sums [B, 4, blocks]
        count, blocks, size, eps, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(0).to(tl.int64)
        largest, slope, stride, reach = summed(sum_ptr, image, blocks, size, BLOCKS)
        at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        at += image * count
        x, z = tl.load(x_ptr + at, inside, 0.0), tl.load(z_ptr + at, inside, 0.0)
        g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32)
        u = (z + stride * (g / largest / slope)) * shrunk(reach, eps)
        tl.store(out_ptr + at, tl.clamp(x + u, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL) - x, inside)

    @triton.jit
    def leave(sum_ptr, z, g, image, block, blocks):
        """What a block of an image says of the norms: sums [B, 4, blocks]."""
        # a NaN of g is lost in max on a GPU, and comes back through the sums
        largest = tl.maximum(tl.max(tl.abs(g), 0), 1.1754943508222875e-38)
        g = g / largest
        blocks = blocks.to(tl.int64)
        sum_ptr += image * 4 * blocks + block
        tl.store(sum_ptr, largest)
        tl.store(sum_ptr + blocks, tl.sum(g * g, 0))
        tl.store(sum_ptr + blocks * 2, tl.sum(z * g, 0))
        tl.store(sum_ptr + blocks * 3, tl.sum(z * z, 0))

    @triton.jit
    def summed(sum_ptr, image, blocks, size, BLOCKS: tl.constexpr):
        """Of an image: max |g|, ||g|| / max |g|, the step's length (0 without a gradient), ||z + size g / ||g||||."""
        blocks = blocks.to(tl.int64)
        each = tl.arange(0, BLOCKS).to(tl.int64)
        there = each < blocks
        sum_ptr += image * 4 * blocks + each
        tops = tl.load(sum_ptr, there, 0.0)
        largest = tl.max(tops, 0)
        share = tops / largest
        squares = tl.sum(tl.load(sum_ptr + blocks, there, 0.0) * share * share, 0)
        along = tl.sum(tl.load(sum_ptr + blocks * 2, there, 0.0) * share, 0)
        length = tl.sum(tl.load(sum_ptr + blocks * 3, there, 0.0), 0)
        still = squares == 0
        slope = tl.where(still, 1.0, tl.sqrt_rn(squares))
        stride = tl.where(still, 0.0, size)
        square = length + 2 * stride * (along / slope) + stride * stride
        return largest, slope, stride, tl.sqrt_rn(tl.maximum(square, 0.0, tl.PropagateNan.ALL))

    @triton.jit
    def shrunk(reach, eps):
        """min(1, eps / reach)."""
        return tl.where(reach > eps, eps / tl.where(reach == 0, 1.0, reach), 1.0)
