"""A network's own noise settled for good: off, or one draw. What is left answers an image the same each time."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.keyed.noise import KeyedNoise
from robust_train.models.network import Network
from robust_train.nouns import Shape
from robust_train.read.errors import ConfigError

Settlement = Literal["fixed", "off"]
"""One draw, the same for every image; or none."""


class SettledNoise(nn.Module):
    """In place of keyed noise: the same N(0, 1) for every image, or none."""

    drawn: Tensor | None  # [1, ...]

    def __init__(self, drawn: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("drawn", drawn, persistent=False)

    def forward(self, like: Tensor) -> Tensor | None:
        """Of the shape and type of `like` [B, ...]."""
        return None if self.drawn is None else self.drawn.to(like.dtype).expand_as(like)


def draws(network: Any, shape: Shape) -> dict[str, Tensor]:
    """{layer: [1, ...]} the noise that a forward of one image of `shape` draws; empty where the network has none.

    The same each time: row 0 of Key(0).of("fixed"), which an ensemble's member m takes by at(m), so that no two share
    it. Costs a forward of one image.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda layer, inputs, output: seen.update({} if output is None else {name: output.detach().clone()})

    if not getattr(network, "noisy", []):
        return seen
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in _layers(network).items()]
    key = Key(0).of("fixed").rows(torch.zeros(1, dtype=torch.int64))
    weight = next(network.parameters())
    try:
        with network.attacked("running", key), network.noise(mode="drawn"), torch.no_grad():
            network(weight.new_full((1, *shape), 0.5))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def settle(network: Any, to: Settlement, shape: Shape) -> None:
    """Put one draw, or none, in place of the noise of a network or an ensemble; shape: of an image. Not to be undone.

    One draw for every image, not one for each: then an answer depends on the image alone, not on those beside it.
    Raises ConfigError for a network without noise.
    """
    found = draws(network, shape)
    if not found:
        raise ConfigError(
            f"--noise {to}: this network draws no noise of its own, and answers the same each time already. Leave "
            "--noise out."
        )
    for name in _layers(network):
        network.set_submodule(name, SettledNoise(found.get(name) if to == "fixed" else None))
    for module in network.modules():
        if isinstance(module, Network):
            module.noisy = []


def refuse_drawn(network: Any, shape: Shape) -> None:
    """Raise ConfigError for a network that draws noise, where a form is to hold it that cannot."""
    found = draws(network, shape)
    if found:
        raise ConfigError(
            f"the network draws noise at each forward ({', '.join(found)}), which no other form can do by its key. Say "
            "what becomes of it: --noise off, or --noise fixed for one draw that stays the same for every image."
        )


def _layers(network: nn.Module) -> dict[str, KeyedNoise]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, KeyedNoise)}
