"""Floating-point operations, counted."""

from __future__ import annotations

from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@contextmanager
def counting():
    """Yields a list of floating-point operations of the matrix products done inside."""

    class Flops(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            out = function(*arguments, **(named or {}))
            formula = flop_registry.get(function._overloadpacket)
            if formula is not None:
                counted.append(formula(*arguments, **(named or {}), out_val=out))
            return out

    counted: list[int] = []
    with Flops():
        yield counted
