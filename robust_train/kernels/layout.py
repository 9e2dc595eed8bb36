"""How the elements of an image tensor lie in memory, for kernels that look at each pixel alone."""

from __future__ import annotations

import torch
from torch import Tensor

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape with their elements in the order of the first's. Copies only what lies otherwise.

    Contiguous and channels_last stay; any other layout becomes contiguous.
    """
    last = LAST.get(first.dim())
    kept = last is not None and not first.is_contiguous() and first.is_contiguous(memory_format=last)
    order = last if last is not None and kept else torch.contiguous_format
    return tuple(tensor.contiguous(memory_format=order) for tensor in (first, *others))
