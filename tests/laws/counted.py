"""What an update costs: forwards, backwards, collectives, reads of the device, counted as the dispatcher sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")
"""Operations that wait for the device. Indexing with a mask is one, through nonzero."""


class Counts(TorchDispatchMode):
    """Counts the operations of one layer, collectives, and host reads.

    layer: the shape of a convolution's weight that occurs once in the network, neither first nor last. Its operations
    are counted in images, so that groups and parts add up: forward, input (backward), weight (backward).
    A tensor is on the device if `device` was or anything it was computed from: what is drawn on the host and read
    there costs no wait.
    """

    def __init__(self, layer: torch.Size, device: list[Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.counts: Counter[str] = Counter()
        for tensor in device:
            tensor._on_device = True  # type: ignore[attr-defined]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, inputs = function._schema.name.partition("::"), tree_leaves((args, kwargs))
        on_device = any(getattr(value, "_on_device", False) for value in inputs)
        found = function(*args, **(kwargs or {}))
        if name[0] == "c10d":
            self.counts[f"collective {name[2]}"] += 1
        elif name[2] in READS and on_device:
            self.counts["read"] += 1
        elif name[2] == "convolution" and args[1].shape == self.layer:
            self.counts["forward"] += len(args[0])
        elif name[2] == "convolution" and found.shape == self.layer:
            # the weight's gradient where a backward is differentiated: images and channels change places
            self.counts["weight"] += args[0].shape[1]
        elif name[2] == "convolution_backward" and args[2].shape == self.layer:
            self.counts["input"] += len(args[1]) * args[10][0]
            self.counts["weight"] += len(args[1]) * args[10][1]
        if on_device:
            for value in tree_leaves(found):
                if isinstance(value, Tensor):
                    value._on_device = True  # type: ignore[attr-defined]
        return found


@contextmanager
def counting(layer: torch.Size, device: list[Tensor]) -> Iterator[Counter[str]]:
    """Counts of what is done inside; `Tensor.tolist` and `numpy` too, which the dispatcher does not see on a CPU."""
    mode = Counts(layer, device)
    one_hot = torch.nn.functional.one_hot

    def unread(*args: Any, **kwargs: Any) -> Tensor:
        reads = mode.counts["read"]
        made = one_hot(*args, **kwargs)
        mode.counts["read"] = reads  # it looks at its labels' range on a CPU, and on no other device
        return made

    def counted(read: Any) -> Any:
        def reading(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            mode.counts["read"] += getattr(tensor, "_on_device", False)
            return read(tensor, *args, **kwargs)

        return reading

    with (
        mock.patch.object(Tensor, "tolist", counted(Tensor.tolist)),
        mock.patch.object(Tensor, "numpy", counted(Tensor.numpy)),
        mock.patch.object(torch.nn.functional, "one_hot", unread),
        mode,
    ):
        yield mode.counts
