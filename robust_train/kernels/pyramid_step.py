"""One step of all levels of a pyramid of patches, and the image that they compose, in one pass over the gradient.

    x_0 = x,    u_l = x_{l−1} + m_l U_l(clip(z_l, −eps, eps)),    x_l = clip(u_l, 0, 1),    x' = x_L      (each)
    s_l = m_l Σ_patch g w(u_l) ... w(u_L),    w = 1 inside (0, 1), ½ at 0 and at 1, 0 beyond
    z_l' = clip(z_l + size·sign(s_l), −eps, eps),    s_l = 0 where |z_l| > eps

clips "sum": one clip, after the last level. U_l repeats each entry over its patch. A program holds one tile of one
channel, as wide as the least common multiple of the patches, so that every patch lies in one tile; it reads the tile
once from memory (levels after the first find it in the cache) and writes the levels and the image.

Reads x, g, z and writes z', x': 20 bytes a pixel in fp32 with a level of single pixels, else 12, and 8 / s² for each
level of patches s > 1. x, g and x' in any layout, without a copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust_train.kernels.layout import laid
from robust_train.kernels.linf_step import TYPES

try:  # Triton is an extra: without it, and on a CPU, the reference runs
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

BLOCK = 1024
Levels = tuple[Tensor, ...]


def pyramid_step(
    images: Tensor,
    z: Levels,
    gradient: Tensor,
    size: float,
    eps: float,
    patches: tuple[int, ...],
    multipliers: tuple[float, ...],
    each: bool,
) -> tuple[Levels, Tensor]:
    """`reference`, fused on CUDA in fp32. Equal to it wherever the order of a sum does not decide its sign."""
    float32 = all(tensor.dtype == torch.float32 for tensor in (images, *z))
    if triton is None or not images.is_cuda or not float32 or gradient.dtype not in TYPES:
        return reference(images, z, gradient, size, eps, patches, multipliers, each)
    return launch(images, z, gradient, size, eps, patches, multipliers, each)


def reference(
    images: Tensor,
    z: Levels,
    gradient: Tensor,
    size: float,
    eps: float,
    patches: tuple[int, ...],
    multipliers: tuple[float, ...],
    each: bool,
) -> tuple[Levels, Tensor]:
    """The definition: (levels, the image that they compose). A NaN in a patch's gradient, a NaN in its offset."""
    with torch.enable_grad():  # through `composed` itself, so that the clips are exactly those of the image
        held = tuple(level.detach().requires_grad_() for level in z)
        image = composed(images, held, eps, patches, multipliers, each)
        slopes = torch.autograd.grad(image, held, gradient.to(images.dtype))
    moved = tuple(
        torch.where(slope.isnan(), slope, slope.sign()).mul_(size).add_(level).clamp_(-eps, eps)
        for level, slope in zip(z, slopes, strict=True)
    )
    return moved, composed(images, moved, eps, patches, multipliers, each)


def composed(
    images: Tensor, z: Levels, eps: float, patches: tuple[int, ...], multipliers: tuple[float, ...], each: bool
) -> Tensor:
    """x' [B, C, H, W]."""
    moved = images
    for patch, multiplier, level in zip(patches, multipliers, z, strict=True):
        offset = level.clamp(-eps, eps).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        moved = moved + multiplier * offset
        if each:
            moved = _boxed(moved)
    return moved if each else _boxed(moved)


def _boxed(pixels: Tensor) -> Tensor:
    """Clipped to [0, 1]; exactly at 0 or 1 half of the gradient passes."""
    return pixels.maximum(pixels.new_zeros(())).minimum(pixels.new_ones(()))


def launch(
    images: Tensor,
    z: Levels,
    gradient: Tensor,
    size: float,
    eps: float,
    patches: tuple[int, ...],
    multipliers: tuple[float, ...],
    each: bool,
) -> tuple[Levels, Tensor]:
    """The kernel, on the device of the images (on CPU tensors in Triton's interpreter)."""
    (images,) = laid(images)
    z = tuple(level.contiguous() for level in z)
    out, moved = torch.empty_like(images), tuple(torch.empty_like(level) for level in z)
    if not images.numel():
        return moved, out
    channels, height, width = images.shape[1:]
    fixed = constants(patches, multipliers, each)
    with torch.cuda.device_of(images):  # else Triton launches on cuda:0
        kernel[(images.numel() // fixed["TILE"] ** 2,)](
            images, gradient, z, moved, out,
            channels, height, width, images.stride(), gradient.stride(), size, eps,
            **fixed, enable_fp_fusion=False,  # at a tie with 0 or 1 a rounding decides
        )  # fmt: skip
    return moved, out


def constants(patches: tuple[int, ...], multipliers: tuple[float, ...], each: bool) -> dict:
    """What a kernel is compiled for. A block holds ROWS patches of COLUMNS pixels, both powers of two."""
    tile = math.lcm(*patches)
    columns = tuple(min(BLOCK, _power(patch**2)) for patch in patches)
    rows = tuple(min(BLOCK // c, _power((tile // patch) ** 2)) for c, patch in zip(columns, patches, strict=True))
    of_levels = {"PATCHES": patches, "MULTIPLIERS": multipliers, "ROWS": rows, "COLUMNS": columns}
    return of_levels | {"LEVELS": len(patches), "TILE": tile, "EACH": each, "BLOCK": min(BLOCK, _power(tile**2))}


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def signature(levels: int, gradient: torch.dtype = torch.float32) -> dict:
    """The kernel's argument types, for compiling it ahead of time."""
    pointers = {"x_ptr": "*fp32", "g_ptr": TYPES[gradient], "z_ptrs": ("*fp32",) * levels}
    pointers |= {"new_ptrs": ("*fp32",) * levels, "out_ptr": "*fp32"}
    shape = {"channels": "i32", "height": "i32", "width": "i32", "x_strides": ("i32",) * 4, "g_strides": ("i32",) * 4}
    return (
        pointers | shape | {"size": "fp32", "eps": "fp32"} | dict.fromkeys(constants((1,), (1.0,), True), "constexpr")
    )


if triton is not None:

    @triton.jit
    def kernel(
        x_ptr, g_ptr, z_ptrs, new_ptrs, out_ptr,  # x, g, out [B, C, H, W]; z, new [B, C, H / s, W / s] each contiguous
        channels, height, width, x_strides, g_strides, size, eps,
        PATCHES: tl.constexpr, MULTIPLIERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        LEVELS: tl.constexpr, TILE: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        tile = tl.program_id(0).to(tl.int64)
        across, down = width // TILE, height // TILE
        left, top = tile % across * TILE, tile // across % down * TILE
        plane = tile // across // down
        x_at = plane // channels * x_strides[0] + plane % channels * x_strides[1]
        x_ptr += x_at
        out_ptr += x_at
        g_ptr += plane // channels * g_strides[0] + plane % channels * g_strides[1]

        for level in tl.static_range(LEVELS):
            ascend(
                x_ptr, g_ptr, z_ptrs, new_ptrs[level], plane, top, left, height, width, x_strides, g_strides, size, eps,
                PATCHES, MULTIPLIERS, ROWS[level], COLUMNS[level], LEVELS, TILE, EACH, level, PATCHES[level],
            )  # fmt: skip

        tl.debug_barrier()  # the tile's new levels are read by other threads than wrote them
        for first in range(0, TILE * TILE, BLOCK):
            at = first + tl.arange(0, BLOCK).to(tl.int64)
            inside = at < TILE * TILE
            y, x = top + at // TILE, left + at % TILE
            place = y * x_strides[2] + x * x_strides[3]
            value = tl.load(x_ptr + place, inside, 0.0)
            for level in tl.static_range(LEVELS):
                value += MULTIPLIERS[level] * offset(
                    new_ptrs[level], plane, y, x, inside, height, width, eps, PATCHES[level]
                )
                if EACH:
                    value = tl.clamp(value, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(out_ptr + place, tl.clamp(value, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL), inside)

    @triton.jit
    def ascend(
        x_ptr, g_ptr, z_ptrs, new_ptr, plane, top, left, height, width, x_strides, g_strides, size, eps,
        PATCHES: tl.constexpr, MULTIPLIERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        LEVELS: tl.constexpr, TILE: tl.constexpr, EACH: tl.constexpr, LEVEL: tl.constexpr, PATCH: tl.constexpr,
    ):  # fmt: skip
        """One level's patches of the tile."""
        SIDE: tl.constexpr = TILE // PATCH
        for first in range(0, SIDE * SIDE, ROWS):
            patch = first + tl.arange(0, ROWS).to(tl.int64)
            there = patch < SIDE * SIDE
            row, column = top // PATCH + patch // SIDE, left // PATCH + patch % SIDE
            total = tl.zeros([ROWS], tl.float32)
            for begin in range(0, PATCH * PATCH, COLUMNS):
                pixel = begin + tl.arange(0, COLUMNS).to(tl.int64)
                inside = there[:, None] & (pixel < PATCH * PATCH)[None, :]
                y = (row * PATCH)[:, None] + (pixel // PATCH)[None, :]
                x = (column * PATCH)[:, None] + (pixel % PATCH)[None, :]
                value = tl.load(x_ptr + y * x_strides[2] + x * x_strides[3], inside, 0.0)
                g = tl.load(g_ptr + y * g_strides[2] + x * g_strides[3], inside, 0.0).to(tl.float32)
                for other in tl.static_range(LEVELS):
                    value += MULTIPLIERS[other] * offset(
                        z_ptrs[other], plane, y, x, inside, height, width, eps, PATCHES[other]
                    )
                    if EACH:
                        if other >= LEVEL:
                            g = passed(g, value)
                        value = tl.clamp(value, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
                if not EACH:
                    g = passed(g, value)
                total += tl.sum(tl.where(inside, g, 0.0), 1)
            at = (plane * (height // PATCH) + row) * (width // PATCH) + column
            z = tl.load(z_ptrs[LEVEL] + at, there, 0.0)
            slope = tl.where((z >= -eps) & (z <= eps), total * MULTIPLIERS[LEVEL], 0.0)
            sign = tl.where(slope > 0, 1.0, tl.where(slope < 0, -1.0, slope))
            moved = tl.clamp(z + size * sign, -eps, eps, propagate_nan=tl.PropagateNan.ALL)
            tl.store(new_ptr + at, moved, there)

    @triton.jit
    def offset(z_ptr, plane, y, x, inside, height, width, eps, PATCH: tl.constexpr):
        """A level's offset at those pixels of the image."""
        at = (plane * (height // PATCH) + y // PATCH) * (width // PATCH) + x // PATCH
        return tl.clamp(tl.load(z_ptr + at, inside, 0.0), -eps, eps, propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def passed(g, value):
        """What of the gradient passes back through the clip."""
        g = tl.where((value == 0) | (value == 1), g / 2, g)
        return tl.where((value < 0) | (value > 1), 0.0, g)
