"""The optimiser of a run: timm's, with weight decay where it belongs and the rate its schedule gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import nn

from robust_train.read.errors import ConfigError
from robust_train.read.registry import Number

ELEMENTWISE = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "lion", "rmsprop")
"""Optimisers whose update of a weight depends on that weight alone: those that sharding (ZeRO 1 and up) keeps right."""


@dataclass(frozen=True)
class Optimiser:
    """An optimiser of timm by name, its rate and its weight decay.

    Weight decay spares biases and norms, and what the model names in `no_weight_decay` (class tokens, positions),
    unless `decay_all` is set.
    """

    name: str = "sgd"  # timm's name: sgd (Nesterov), momentum, adamw, nadamw, lion, lamb, ...
    lr: Number = 0.1  # learning rate: a number or a schedule
    weight_decay: float = 0.0  # decoupled for adamw and lion, in the gradient for sgd
    momentum: float = 0.9  # for sgd, momentum and rmsprop
    betas: tuple[float, float] | None = None  # for adam and its kin; the optimiser's own where absent
    clip: float = 0.0  # largest norm of the whole gradient; 0: no clipping
    decay_all: bool = False  # weight decay on biases and norms too
    options: dict[str, float | bool | str] = field(default_factory=dict)  # further arguments of timm's optimiser

    def __post_init__(self) -> None:
        if self.clip < 0:
            raise ValueError(f"clip={self.clip:g} must not be negative: it is the largest norm of the gradient")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """timm's optimiser over a model's trained parameters; its rate is set anew before each update."""
        from timm.optim import create_optimizer_v2

        options: dict = dict(self.options)
        if self.betas is not None:
            options["betas"] = self.betas
        model = getattr(model, "model", model)  # of a Network: under the names that its `no_weight_decay` uses
        try:
            return create_optimizer_v2(
                model,
                opt=self.name,
                lr=1.0,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                filter_bias_and_bn=not self.decay_all,
                **options,
            )
        except (ValueError, AssertionError, TypeError) as error:
            raise ConfigError(f"run.optimiser: timm cannot make {self.name!r}: {error}{_nearest(self.name)}") from error


def _nearest(name: str) -> str:
    """timm's nearest names of optimisers, or nothing where the name is one."""
    from timm.optim import list_optimizers

    near = get_close_matches(name, [str(known) for known in list_optimizers()], 3)
    return f"; did you mean {', '.join(near)}?" if near and name not in near else ""


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate: the run's, times the group's own scale where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
