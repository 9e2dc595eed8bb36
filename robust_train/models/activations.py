"""Smooth activations in place of ReLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from robust_train.models.drops import _called
from robust_train.nouns import Edit, Shape
from robust_train.read.errors import ConfigError
from robust_train.read.registry import edits

Activation = Literal["relu", "gelu", "silu", "softplus"]
MADE: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus}
RELUS = (nn.ReLU, nn.ReLU6)
FUNCTIONS = frozenset({"relu", "relu_", "relu6"})


@edits.register("activation")
@dataclass(frozen=True)
class Activations(Edit):
    """An activation in place of every ReLU and ReLU6 of a model, also inside timm's norms.

    relu leaves ReLUs and makes ReLU6 plain; softplus is log(1 + exp(x)), beta 1 as in E-AT's code.
    """

    name: Activation  # in place of ReLU

    examples = """
    - {name: gelu}
    - {name: silu}
    """

    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        replace_relus(model, self.name)


def replace_relus(model: nn.Module, activation: Activation) -> list[str]:
    """Put `activation` in place of every ReLU and ReLU6 of `model`, in place; their names.

    Raises ConfigError for a model without ReLU, or with one that is called as a function and cannot be replaced.
    """
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in RELUS and name:
            model.set_submodule(name, MADE[activation]())
            names.append(name)
    functional = [
        name or "the model"
        for name, module in model.named_modules()
        if type(module) not in RELUS and any(not hasattr(module, function) for function in FUNCTIONS & _called(module))
    ]
    if functional:
        raise ConfigError(
            f"{functional[0]} calls relu as a function, which {activation} cannot replace. Leave this edit out, or "
            "choose another model."
        )
    if not names:
        raise ConfigError(
            f"{type(model).__name__} has no ReLU for {activation} to replace. Leave this edit out: the model keeps its "
            "own activations."
        )
    return names
