"""Smooth activations in place of ReLU."""

from __future__ import annotations

from typing import Literal

from torch import nn

from robust_train.models.drops import _called
from robust_train.read.errors import ConfigError

Activation = Literal["relu", "gelu", "silu", "softplus"]
RELUS = (nn.ReLU, nn.ReLU6)
FUNCTIONS = frozenset({"relu", "relu_", "relu6"})


def replace_relus(model: nn.Module, activation: Activation) -> list[str]:
    """Put `activation` in place of every ReLU and ReLU6 of `model` (also inside timm's norms), in place; their names.

    relu leaves ReLUs and makes ReLU6 plain; softplus is log(1 + exp(x)), beta 1 as in E-AT's code. Raises ConfigError
    for a model without ReLU, or with one that is called as a function and cannot be replaced.
    """
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in RELUS and name:
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], _made(activation))
            names.append(name)
    functional = [
        name or "the model"
        for name, module in model.named_modules()
        if type(module) not in RELUS and any(not hasattr(module, function) for function in FUNCTIONS & _called(module))
    ]
    if functional:
        raise ConfigError(
            f"{functional[0]} calls relu as a function, which network.activation={activation} cannot replace. "
            "Leave network.activation out, or choose another model."
        )
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no ReLU for network.activation={activation} to replace. "
            "Leave network.activation out: the model keeps its own."
        )
    return names


def _made(activation: Activation) -> nn.Module:
    match activation:
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU()
        case "softplus":
            return nn.Softplus()
        case _:
            return nn.ReLU()
