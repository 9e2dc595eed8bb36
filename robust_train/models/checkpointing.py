"""Activations recomputed in the backward pass, under the masks and modes of the forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robust_train.keyed.mode import Held, Mode
from robust_train.read.errors import ConfigError

CONTAINERS = ("blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4", "dense_stages")


def checkpoint_blocks(model: nn.Module, held: Held | None = None) -> list[str]:
    """Keep only the inputs of each repeated block of `model` and compute the rest again in backward. Returns the names.

    Blocks are the innermost children of timm's `blocks`, `stages`, `layers`, `layer1` to `layer4`. Costs one more
    forward of them a backward; gradients do not change. held: of the model's network. Its mode, whole, and train or
    eval of each module are what they were in the forward while it is recomputed, which is after the `with
    network.drops(key)` has ended.
    """
    blocks = dict(_blocks(model))
    if not blocks:
        raise ConfigError(
            f"{type(model).__name__} has no repeated blocks to recompute: none of its layers is called "
            f"{', '.join(CONTAINERS)}. Train it without checkpointed blocks."
        )
    for block in blocks.values():
        _wrap(block, held or Held())
    return list(blocks)


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for container, children in module.named_children():
        if container in CONTAINERS:
            for name, child in children.named_children():
                path = f"{prefix}{container}.{name}"
                inner = list(_blocks(child, f"{path}."))
                yield from inner or [(path, child)]


def _wrap(block: Any, held: Held) -> None:
    # bound methods, not closures: a copied network's blocks are then bound to the copies
    if "plain_forward" not in vars(block):
        block.plain_forward = block.forward
        block.forward = MethodType(_forward, block)
    block.recomputed_under = held


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    plain = block.plain_forward
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
    return nullcontext(), _As(block)


class _As:
    """The mode at construction, its swaps with it, and train or eval of each module, for a while.

    Afterwards what it was comes back. Entered once for each backward through the block, as often as the graph is kept.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.held = block, block.recomputed_under
        # statistics count once; and a recomputation may stop before its last group
        self.then = replace(self.held.now, record=False), _flags(block)
        self.now = self.then
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        self.now = self.held.now, _flags(self.block)
        self._set(self.then)
        mode, inside = self.then[0], set(self.block.modules()) - {self.block}  # the block's own hooks run around it
        self.hooks = [layer.register_forward_hook(hook) for layer, hook in mode.swaps if layer in inside]

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()
        self._set(self.now)

    def _set(self, state: tuple[Mode, dict[nn.Module, bool]]) -> None:
        self.held.now, flags = state
        for module, training in flags.items():
            module.training = training


def _flags(block: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in block.modules()}
