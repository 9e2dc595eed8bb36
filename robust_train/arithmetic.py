"""What `precision: fp32` promises of a process's arithmetic."""

from __future__ import annotations

import torch


def full_float32() -> None:
    """Convolutions and matrix products of float32 numbers are float32 products, in this process from now on.

    On a GPU PyTorch otherwise rounds what convolutions multiply to TF32, of 10 bits of mantissa. Every process that
    trains or judges says this before its first forward; bfloat16 is what a run asks for by `precision`, and it is
    autocast inside the network.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
