"""What every attack does to a network before and after: nothing that stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.keyed import Key

Norm = Literal["running", "group"]
Drops = Literal["off", "frozen", "redrawn"]


@contextmanager
def attacked(network: Any, norm: Norm = "running", key: Key | None = None) -> Iterator[None]:
    """Hold `network` while it is attacked: parameters frozen, BatchNorm as said, gradients enabled; all restored.

    key: of the network's own noise, where it has any; each forward draws anew, so that more of them see more of it.
    Freezing saves the activations kept for weight gradients (37 % of a ViT's) and keeps a compiled network from
    computing them. A plain nn.Module is set to eval mode (norm "running") or train mode with its statistics set aside;
    any other callable is left as it is. A module wrapped for distributed training is refused: its wrapper reduces
    gradients or corrupts the update when an attack goes through it.
    """
    if hasattr(network, "module") and isinstance(getattr(network, "module", None), nn.Module):
        raise ValueError(
            f"{type(network).__name__} wraps a network for distributed training, and an attack through the wrapper "
            "costs collectives or corrupts the update: attack its .module"
        )
    module: Any = network if isinstance(network, nn.Module) else getattr(network, "plain", None)
    if not isinstance(module, nn.Module):
        with torch.enable_grad():
            yield
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    own = getattr(module, "attacked", None)
    try:
        with torch.enable_grad(), own(norm, key) if own is not None else _modes(module, norm):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def masks(network: Any, drops: Drops, key: Key, step: int) -> Iterator[None]:
    """Dropout and stochastic depth for one forward of an attack: off, one draw for all steps, or one each step.

    The network's noise is as dropout is, except that off leaves it on, as in evaluation: each step draws anew, for the
    rows that `key` names, so that images set aside change no other's noise.
    """
    if not hasattr(network, "drops"):
        yield
        return
    if drops != "off":
        with network.drops(key if drops == "frozen" else key.at(step)):
            yield
        return
    noise = getattr(network, "noise", None)
    with network.drops(None), nullcontext() if noise is None else noise(key.at(step)):
        yield


@contextmanager
def undropped(network: Any) -> Iterator[None]:
    """No dropout and no stochastic depth for a whole attack; the network's noise as it is."""
    with network.drops(None) if hasattr(network, "drops") else nullcontext():
        yield


def noised(network: Any, key: Key) -> AbstractContextManager[None]:
    """For a stage of an attack that some images leave early: its noise by a key of its own, whatever came before."""
    return network.noise(key) if hasattr(network, "noise") else nullcontext()


def some(network: Any, rows: Tensor) -> AbstractContextManager[None]:
    """For forwards of some of the attacked images: their masks and noise, by their rows [b] among all."""
    return network.mode(rows=rows) if hasattr(network, "mode") else nullcontext()


@contextmanager
def _modes(module: nn.Module, norm: Norm) -> Iterator[None]:
    """Eval or train mode of a module that is not ours, running statistics set aside, everything restored exactly."""
    modes = {child: child.training for child in module.modules()}
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()} if norm == "group" else {}
    module.train(norm == "group")
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
        with torch.no_grad():
            for name, buffer in kept.items():
                module.get_buffer(name).copy_(buffer)
