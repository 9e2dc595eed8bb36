"""One ascent step of the k largest gradients, and the exact projection on L1 ball and pixel box, without a sort.

    u = z + size·sign(g) m / Σ m,    m = the k largest |g| among the pixels that can still move
    z'_i = sign(u_i) clip(|u_i| − t, 0, cap_i),    cap_i = 1 − x_i where u_i > 0, else x_i
    t = 0 where that is inside the ball, else the root of Σ clip(|u_i| − t, 0, cap_i) = eps, which falls with t

One program an image. The k-th largest is found bit by bit: non-negative floats are ordered as their bits are, so 31
counts give it exactly. The root's bracket is halved 40 times. Of memory a step reads x, z, g and writes z', 16 bytes a
pixel in fp32; all other readings find the image in the cache. No host sync, no atomics.
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

HALVINGS = 40  # after which the root's bracket is shorter than float32 resolves
BLOCK = 2048  # pixels at a time, at most
FACE = 1e-6  # x + (1 - x) need not round to 1


def l1_step(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float, top: int) -> Tensor:
    """`reference`, fused on CUDA in fp32. The same pixels move, to where the order of the sums says."""
    float32 = images.dtype == z.dtype == torch.float32
    if triton is None or not images.is_cuda or not float32 or gradient.dtype not in TYPES:
        return reference(images, z, gradient, size, eps, top)
    return launch(images, z, gradient, size, eps, top)


def l1_project(images: Tensor, z: Tensor, eps: float) -> Tensor:
    """`projected`, fused on CUDA in fp32."""
    if triton is None or not images.is_cuda or not images.dtype == z.dtype == torch.float32:
        return projected(images, z, eps)
    return launch_project(images, z, eps)


def reference(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float, top: int) -> Tensor:
    """The definition. [B, ...]; `top` pixels an image move. Ties at the k-th place all do, none without a gradient."""
    gradient, place = gradient.to(z.dtype), images + z
    stuck = ((place >= 1 - FACE) & (gradient > 0)) | ((place <= FACE) & (gradient < 0))
    g = gradient.masked_fill(stuck, 0).flatten(1)
    least = g.abs().topk(min(top, g.shape[1]), dim=1).values[:, -1:]
    chosen = ((g.abs() >= least) & (g != 0)) | g.isnan()
    sign = torch.where(g.isnan(), g, g.sign())  # torch.sign(NaN) is 0: it would hide the fault
    direction = torch.where(chosen, sign, 0).div_(chosen.sum(1, keepdim=True).clamp(min=1))
    return projected(images, direction.mul_(size).view_as(z).add_(z), eps)


def projected(images: Tensor, z: Tensor, eps: float) -> Tensor:
    """The point nearest to x + z in {||z||_1 <= eps, x + z in [0, 1]}, as a perturbation [B, ...].

    The root's bracket is halved, without sorting and without a host sync. Croce and Hein 2021 (arXiv 2103.01208,
    proposition 1).
    """
    if eps <= 0:
        return torch.zeros_like(z)
    u, x = z.flatten(1), images.flatten(1)
    size, cap = u.abs(), torch.where(u > 0, 1 - x, x)
    buffer = torch.empty_like(size)

    def kept(t: Tensor) -> Tensor:
        return torch.sub(size, t, out=buffer).clamp_(min=0).clamp_(max=cap)

    def length(t: Tensor) -> Tensor:
        return kept(t).sum(1, keepdim=True)

    zero = size.new_zeros(len(size), 1)
    low, high = zero, size.amax(1, keepdim=True) if size.numel() else zero
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = length(middle) > eps
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    t = torch.where(length(zero) <= eps, zero, high)  # the end whose length is at most eps
    return (u.sign() * kept(t)).view_as(z)


def launch(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float, top: int) -> Tensor:
    """The step's kernel, on the device of the images (on CPU tensors in Triton's interpreter)."""
    images, z, gradient = laid(images, z, gradient)
    if eps <= 0 or not images.numel():
        return torch.zeros_like(images)
    out, count = torch.empty_like(images), images.numel() // len(images)
    with torch.cuda.device_of(images):  # else Triton launches on cuda:0
        kernel[(len(images),)](
            images,
            z,
            gradient,
            out,
            count,
            min(top, count),
            size,
            eps,
            BLOCK=_block(count),
            ROUNDS=HALVINGS,
            num_warps=8,
        )
    return out


def launch_project(images: Tensor, z: Tensor, eps: float) -> Tensor:
    """The projection's."""
    images, z = laid(images, z)
    if eps <= 0 or not images.numel():
        return torch.zeros_like(images)
    out, count = torch.empty_like(images), images.numel() // len(images)
    with torch.cuda.device_of(images):
        project[(len(images),)](images, z, out, count, eps, BLOCK=_block(count), ROUNDS=HALVINGS, num_warps=8)
    return out


def _block(count: int) -> int:
    return min(BLOCK, 1 << (count - 1).bit_length())


def signature(gradient: torch.dtype = torch.float32) -> dict[str, str]:
    """The step's argument types, for compiling it ahead of time."""
    pointers = {"x_ptr": "*fp32", "z_ptr": "*fp32", "g_ptr": TYPES[gradient], "out_ptr": "*fp32"}
    numbers = {"count": "i32", "top": "i32", "size": "fp32", "eps": "fp32"}
    return pointers | numbers | {"BLOCK": "constexpr", "ROUNDS": "constexpr"}


def project_signature() -> dict[str, str]:
    """The projection's."""
    pointers = {"x_ptr": "*fp32", "z_ptr": "*fp32", "out_ptr": "*fp32"}
    return pointers | {"count": "i32", "eps": "fp32", "BLOCK": "constexpr", "ROUNDS": "constexpr"}


if triton is not None:

    @triton.jit
    def kernel(
        x_ptr, z_ptr, g_ptr, out_ptr,  # [B, count] in one layout
        count, top, size, eps, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    ):  # fmt: skip
        start = tl.program_id(0).to(tl.int64) * count
        x_ptr += start
        z_ptr += start
        g_ptr += start
        out_ptr += start
        least = 0  # bits of the top-th largest |g|
        for index in range(0, 31):
            higher = least | (1 << (30 - index))
            reached = tl.zeros([BLOCK], tl.int32)
            for first in range(0, count, BLOCK):
                at = first + tl.arange(0, BLOCK).to(tl.int64)
                reached += (bits(free(x_ptr, z_ptr, g_ptr, at, count)) >= higher).to(tl.int32)
            least = tl.where(tl.sum(reached, 0) >= top, higher, least)
        several = tl.zeros([BLOCK], tl.int32)
        for first in range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK).to(tl.int64)
            several += moves(free(x_ptr, z_ptr, g_ptr, at, count), least).to(tl.int32)
        stride = size * tl.div_rn(1.0, tl.maximum(tl.sum(several, 0), 1).to(tl.float32))
        for first in range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK).to(tl.int64)
            g = free(x_ptr, z_ptr, g_ptr, at, count)
            sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, g))
            u = tl.load(z_ptr + at, at < count, 0.0) + stride * tl.where(moves(g, least), sign, 0.0)
            tl.store(out_ptr + at, u, at < count)
        tl.debug_barrier()
        pull(x_ptr, out_ptr, out_ptr, count, eps, BLOCK, ROUNDS)

    @triton.jit
    def project(
        x_ptr, z_ptr, out_ptr,  # [B, count] in one layout
        count, eps, BLOCK: tl.constexpr, ROUNDS: tl.constexpr,
    ):  # fmt: skip
        start = tl.program_id(0).to(tl.int64) * count
        pull(x_ptr + start, z_ptr + start, out_ptr + start, count, eps, BLOCK, ROUNDS)

    @triton.jit
    def pull(x_ptr, u_ptr, out_ptr, count, eps, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
        """One image's projection; out may be u."""
        largest = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK).to(tl.int64)
            u = tl.load(u_ptr + at, at < count, 0.0)
            largest = tl.maximum(largest, tl.abs(u))
            total += kept(u, tl.load(x_ptr + at, at < count, 0.0), 0.0)
        whole = tl.sum(total, 0)
        low, high = 0.0, tl.max(largest, 0)
        for _ in range(0, tl.where(whole > eps, ROUNDS, 0)):
            middle = (low + high) / 2
            total = tl.zeros([BLOCK], tl.float32)
            for first in range(0, count, BLOCK):
                at = first + tl.arange(0, BLOCK).to(tl.int64)
                u = tl.load(u_ptr + at, at < count, 0.0)
                total += kept(u, tl.load(x_ptr + at, at < count, 0.0), middle)
            beyond = tl.sum(total, 0) > eps
            low, high = tl.where(beyond, middle, low), tl.where(beyond, high, middle)
        t = tl.where(whole <= eps, 0.0, tl.where(whole > eps, high, whole))  # NaN: neither, and it stays visible
        for first in range(0, count, BLOCK):
            at = first + tl.arange(0, BLOCK).to(tl.int64)
            u = tl.load(u_ptr + at, at < count, 0.0)
            z = kept(u, tl.load(x_ptr + at, at < count, 0.0), t)
            tl.store(out_ptr + at, tl.where(u < 0, -z, z), at < count)

    @triton.jit
    def kept(u, x, t):
        """What is left of |u| above t, at most to the box's face. Nothing of 0."""
        left = tl.maximum(tl.abs(u) - t, 0.0, tl.PropagateNan.ALL)
        return tl.where(u == 0, t * 0, tl.minimum(left, tl.where(u > 0, 1 - x, x), tl.PropagateNan.ALL))

    @triton.jit
    def free(x_ptr, z_ptr, g_ptr, at, count):
        """The gradient of the pixels that can move along it, 0 of the others."""
        inside = at < count
        place = tl.load(x_ptr + at, inside, 0.0) + tl.load(z_ptr + at, inside, 0.0)
        g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32)
        return tl.where(((place >= 0.999999) & (g > 0)) | ((place <= 1e-6) & (g < 0)), 0.0, g)

    @triton.jit
    def bits(g):
        """|g| as an integer of the same order, NaN above all."""
        return g.to(tl.int32, bitcast=True) & 0x7FFFFFFF

    @triton.jit
    def moves(g, least):
        return ((bits(g) >= least) & (g != 0)) | (g != g)
