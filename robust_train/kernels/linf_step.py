"""One projected ascent step inside an L∞ ball and the pixel box, in one pass over memory.

    z' = clip(x + clip(z + size·sign(g), −eps, eps), 0, 1) − x

Reads x, z, g and writes z': 16 bytes a pixel in fp32, 14 with a half-precision gradient. channels_last stays so,
without a copy: no pixel looks at another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust_train.kernels.layout import laid

try:  # Triton is an extra: without it, and on a CPU, the reference runs
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

BLOCK = 1024
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}  # of gradients


def linf_step(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """`reference`, fused on CUDA in fp32. Equal to it to the bit: only ±size is multiplied, so FMA rounds nothing."""
    float32 = images.dtype == z.dtype == torch.float32
    if triton is None or not images.is_cuda or not float32 or gradient.dtype not in TYPES:
        return reference(images, z, gradient, size, eps)
    return launch(images, z, gradient, size, eps)


def reference(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """The definition. Any shape; images and z of one dtype, the gradient of any. NaN in, NaN out."""
    gradient = gradient.to(z.dtype)  # size times a bf16 sign would round the step to bf16
    sign = torch.where(gradient.isnan(), gradient, gradient.sign())  # torch.sign(NaN) is 0: it would hide the fault
    return sign.mul_(size).add_(z).clamp_(-eps, eps).add_(images).clamp_(0, 1).sub_(images)  # one buffer, same bits


def launch(images: Tensor, z: Tensor, gradient: Tensor, size: float, eps: float) -> Tensor:
    """The kernel, on the device of the images (on CPU tensors in Triton's interpreter)."""
    images, z, gradient = laid(images, z, gradient)
    out = torch.empty_like(images)
    n = images.numel()
    if n:
        with torch.cuda.device_of(images):  # else Triton launches on cuda:0
            kernel[(triton.cdiv(n, BLOCK),)](images, z, gradient, out, n, size, eps, BLOCK=BLOCK)
    return out


def signature(gradient: torch.dtype = torch.float32) -> dict[str, str]:
    """The kernel's argument types, for compiling it ahead of time."""
    pointers = {"x_ptr": "*fp32", "z_ptr": "*fp32", "g_ptr": TYPES[gradient], "out_ptr": "*fp32"}
    return pointers | {"n": "i32", "size": "fp32", "eps": "fp32", "BLOCK": "constexpr"}


if triton is not None:

    @triton.jit
    def kernel(
        x_ptr, z_ptr, g_ptr, out_ptr,  # [n] each, in one layout; g in any float dtype
        n, size, eps, BLOCK: tl.constexpr,
    ):  # fmt: skip
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        x, z = tl.load(x_ptr + at, inside), tl.load(z_ptr + at, inside)
        g = tl.load(g_ptr + at, inside).to(x.dtype)
        sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, g))
        z = tl.clamp(z + size * sign, -eps, eps, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out_ptr + at, tl.clamp(x + z, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL) - x, inside)
