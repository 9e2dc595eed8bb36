"""Compiling a Triton kernel for a GPU that is not there: whether it will run is known before a cluster is."""

from __future__ import annotations

import re
from typing import Any


def compiled(
    kernel: Any, signature: dict[str, str], constants: dict[str, int], capability: int, fma: bool = True
) -> dict[str, Any]:
    """What Triton makes of `kernel` for compute capability 80 (A100), 90 (H100), 100 (B200): "ptx", "cubin" and more.

    signature: {argument: "*fp32", "i32", "constexpr", ...}. fma: whether a multiply and an add may become one rounding.
    Raises Triton's CompilationError where the kernel does not compile, and ValueError where it was loaded for Triton's
    interpreter. About half a second.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(kernel, triton.JITFunction):
        raise ValueError(
            f"{kernel} was loaded for Triton's interpreter and cannot be compiled: "
            "unset TRITON_INTERPRET and start again"
        )
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    return dict(triton.compile(source, target=target, options={"enable_fp_fusion": fma}).asm)


def offsets(ir: str) -> set[str]:
    """The integer types by which pointers move in Triton's IR ("ttir"): {"i64"} where no tensor is too large."""
    moves = re.findall(r"tt\.addptr .*, (?:tensor<[\dx]*?)?(i\d+)>?", ir)
    if not moves:
        raise ValueError("no pointer moves in this IR: take compiled(...)['ttir']")
    return set(moves)
