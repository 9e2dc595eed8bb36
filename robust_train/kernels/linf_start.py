"""A keyed random point of an L∞ ball inside the pixel box, drawn where it is used.

    z = clip(x + (2u − 1)·eps, 0, 1) − x,    u ~ U[0, 1) by `keyed.uniform`

Reads x and writes z: 8 bytes a pixel in fp32, in the layout of the images. In eager PyTorch the same words pass through
memory as int64 some 100 times. The generator is Triton's Philox 4x32-10, tested equal to ours to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust_train.kernels.layout import laid
from robust_train.keyed.draws import rows_of, uniform
from robust_train.keyed.key import Key

try:  # Triton is an extra: without it, and on a CPU, the reference runs
    import triton
    import triton.language as tl
except ModuleNotFoundError:
    triton = None

BLOCK = 256  # counters a program: 1,024 pixels


def linf_start(images: Tensor, key: Key, eps: float) -> Tensor:
    """`reference`, fused on CUDA in fp32. Equal to it to the bit: compiled without FMA, which would round once less."""
    if triton is None or not images.is_cuda or images.dtype != torch.float32:
        return reference(images, key, eps)
    return launch(images, key, eps)


def reference(images: Tensor, key: Key, eps: float) -> Tensor:
    """The definition. images [B, ...] in [0, 1]; one row of the key for each."""
    z = (2 * uniform(key, images.shape, images.device, images.dtype) - 1) * eps
    return (images + z).clamp(0, 1) - images


def launch(images: Tensor, key: Key, eps: float) -> Tensor:
    """The kernel, on the device of the images (on CPU tensors in Triton's interpreter)."""
    (images,) = laid(images)
    out = torch.empty_like(images)
    if not images.numel():
        return out
    rows = rows_of(key, len(images), images.device).contiguous()
    count = images.numel() // len(images)
    channels = images.shape[1] if images.dim() > 2 and not images.is_contiguous() else 1
    low, high = (word - (1 << 32 if word >= 1 << 31 else 0) for word in key.words)  # the same bits as int32
    with torch.cuda.device_of(images):  # else Triton launches on cuda:0
        grid = (len(images), triton.cdiv(count, 4 * BLOCK))
        kernel[grid](
            images,
            rows,
            out,
            count,
            count // channels,
            low,
            high,
            eps,
            BLOCK=BLOCK,
            LAST=channels,
            enable_fp_fusion=False,
        )
    return out


def signature() -> dict[str, str]:
    """The kernel's argument types, for compiling it ahead of time."""
    pointers = {"x_ptr": "*fp32", "row_ptr": "*i64", "out_ptr": "*fp32"}
    return pointers | {
        "count": "i32",
        "plane": "i32",
        "low": "i32",
        "high": "i32",
        "eps": "fp32",
        "BLOCK": "constexpr",
        "LAST": "constexpr",
    }


if triton is not None:

    @triton.jit(do_not_specialize=["low", "high"])  # a key divisible by 16 is no other kernel
    def kernel(
        x_ptr, row_ptr, out_ptr,  # x, out [B, count]: contiguous, or LAST channels last; row [B] int64
        count, plane, low, high, eps, BLOCK: tl.constexpr, LAST: tl.constexpr,
    ):  # fmt: skip
        image = tl.program_id(0).to(tl.int64)
        row = tl.load(row_ptr + image)
        block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        at = 4 * block.to(tl.int64)
        zero = tl.zeros_like(block)
        # Philox's key is one 64-bit seed here; its counter (block, stream 0, row's low word, row's high word)
        seed = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
        w0, w1, w2, w3 = tl.philox(seed, block, zero, zero + row.to(tl.int32), zero + (row >> 32).to(tl.int32))
        x_ptr += image * count
        out_ptr += image * count
        start(x_ptr, out_ptr, at, w0, count, plane, eps, LAST)
        start(x_ptr, out_ptr, at + 1, w1, count, plane, eps, LAST)
        start(x_ptr, out_ptr, at + 2, w2, count, plane, eps, LAST)
        start(x_ptr, out_ptr, at + 3, w3, count, plane, eps, LAST)

    @triton.jit
    def start(x_ptr, out_ptr, at, word, count, plane, eps, LAST: tl.constexpr):
        """One pixel in four: word [BLOCK] uint32 for the pixels at [BLOCK], counted as if the image were contiguous."""
        inside = at < count
        if LAST > 1:
            at = at % plane * LAST + at // plane
        x = tl.load(x_ptr + at, inside)
        u = (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
        z = (2 * u - 1) * eps
        tl.store(out_ptr + at, tl.clamp(x + z, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL) - x, inside)
