"""The optimiser of a run: timm's, with weight decay where it belongs and the rate its schedule gives."""

from __future__ import annotations

from difflib import get_close_matches

import torch
from torch import nn

from robust_train.nouns import Schedule
from robust_train.read.errors import ConfigError
from robust_train.read.registry import Number
from robust_train.settings.optimiser import Optimiser

ELEMENTWISE = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "lion", "rmsprop")
"""Optimisers whose update of a weight depends on that weight alone: those that sharding (ZeRO 1 and up) keeps right."""


def build(chosen: Optimiser, model: nn.Module, updates: int) -> torch.optim.Optimizer:
    """timm's optimiser over a model's trained parameters; its rate is set anew before each of a run's `updates`.

    It is made with the largest rate of the run, which some remember: corrected decay is lr^2 / (largest lr) times the
    weight decay, and Muon's adamw_lr becomes a share of it.
    """
    from timm.optim import create_optimizer_v2

    options: dict = dict(chosen.options)
    if chosen.betas is not None:
        options["betas"] = chosen.betas
    model = getattr(model, "model", model)  # of a Network: under the names that its `no_weight_decay` uses
    try:
        return create_optimizer_v2(
            model,
            opt=chosen.name,
            lr=peak(chosen.lr, updates),
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            filter_bias_and_bn=not chosen.decay_all,
            **options,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(f"run.optimiser: timm cannot make {chosen.name!r}: {error}{_nearest(chosen.name)}") from error


def peak(rate: Number, updates: int) -> float:
    """The largest value of a rate in a run's updates."""
    return max(rate(update, updates) for update in range(updates)) if isinstance(rate, Schedule) else rate


def _nearest(name: str) -> str:
    """timm's nearest names of optimisers, or nothing where the name is one."""
    from timm.optim import list_optimizers

    near = get_close_matches(name, [str(known) for known in list_optimizers()], 3)
    return f"; did you mean {', '.join(near)}?" if near and name not in near else ""


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate: the run's, times the group's own scale where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
