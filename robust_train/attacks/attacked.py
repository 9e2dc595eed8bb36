"""What every attack does to a network before and after: nothing that stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.models.foreign import moded

Norm = Literal["running", "group"]
Drops = Literal["off", "frozen", "redrawn"]


@contextmanager
def attacked(network: Any, norm: Norm = "running", key: Key | None = None) -> Iterator[None]:
    """Hold `network` while it is attacked: parameters frozen, BatchNorm as said, gradients enabled; all restored.

    key: of the network's own noise, where it has any; each forward draws anew, so that more of them see more of it.
    Freezing saves the activations kept for weight gradients (37 % of a ViT's) and keeps a compiled network from
    computing them. A module that is not ours is set to eval mode (norm "running") or train mode with its statistics set
    aside. A module wrapped for distributed training is refused: its wrapper reduces gradients or corrupts the update
    when an attack goes through it.
    """
    network = moded(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), network.attacked(norm, key):
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
    network = moded(network)
    if drops != "off":
        with network.drops(key if drops == "frozen" else key.at(step)):
            yield
        return
    with network.drops(None), network.noise(key.at(step)):
        yield


@contextmanager
def undropped(network: Any) -> Iterator[None]:
    """No dropout and no stochastic depth for a whole attack; the network's noise as it is."""
    with moded(network).drops(None):
        yield


def noised(network: Any, key: Key) -> AbstractContextManager[None]:
    """For a stage of an attack that some images leave early: its noise by a key of its own, whatever came before."""
    return moded(network).noise(key)


def some(network: Any, rows: Tensor) -> AbstractContextManager[None]:
    """For forwards of some of the attacked images: their masks and noise, by their rows [b] among all."""
    return moded(network).mode(rows=rows)


@contextmanager
def exactly(network: Any) -> Iterator[None]:
    """Float32 forwards for a while, where the network attacks in less."""
    with moded(network).mode(precision="fp32"):
        yield
