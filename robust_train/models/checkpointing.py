"""Activations recomputed in the backward pass, under the masks and modes of the forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robust_train.read.errors import ConfigError

CONTAINERS = ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4")


def checkpoint_blocks(model: nn.Module, *modes: Any) -> list[str]:
    """Keep only the inputs of each repeated block of `model` and compute the rest again in backward. Returns the names.

    Blocks are the innermost children of timm's `blocks`, `stages`, `layers`, `layer1` to `layer4`. Costs one more
    forward of them a backward; gradients do not change. modes: mutable objects whose fields decide a forward (drop
    masks, BatchNorm modes). Their fields, and train or eval of each module, are what they were in the forward while
    it is recomputed, which is after the `with network.drops(key)` has ended.
    """
    blocks = dict(_blocks(model))
    if not blocks:
        raise ConfigError(
            f"{type(model).__name__} has no repeated blocks to recompute: none of its layers is called "
            f"{', '.join(CONTAINERS)}. Train it without checkpointed blocks."
        )
    for block in blocks.values():
        block.recomputed_under = modes  # type: ignore[assignment]
        # a bound method, not a closure: a copied network's blocks are then bound to the copies
        block.forward = MethodType(_forward, block)  # type: ignore[method-assign]
    return list(blocks)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for container, children in module.named_children():
        if container in CONTAINERS:
            for name, child in children.named_children():
                path = f"{prefix}{container}.{name}"
                inner = list(_blocks(child, f"{path}."))
                yield from inner or [(path, child)]


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    plain = MethodType(type(block).forward, block)
    if not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    if torch.compiler.is_compiling():  # a graph holds key and rows as inputs: it recomputes with the same
        return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    # no module draws from the global generator, and saving its state would wait for the device
    return checkpoint(
        plain, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: _contexts(block), **kwargs
    )


def _contexts(block: Any) -> tuple[Any, Any]:
    """The contexts of a block's forward and of its recomputation; called at the forward."""
    fields = [(mode, dict(vars(mode))) for mode in block.recomputed_under]
    training = [(module, module.training) for module in block.modules()]
    return nullcontext(), _restored(fields, training)


@contextmanager
def _restored(fields: list[tuple[Any, dict[str, Any]]], training: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    fields_now = [(mode, dict(vars(mode))) for mode, _ in fields]
    training_now = [(module, module.training) for module, _ in training]
    _set(fields, training)
    try:
        yield
    finally:
        _set(fields_now, training_now)


def _set(fields: list[tuple[Any, dict[str, Any]]], training: list[tuple[nn.Module, bool]]) -> None:
    for mode, values in fields:
        vars(mode).update(values)
    for module, value in training:
        module.training = value
