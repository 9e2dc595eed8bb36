"""The optimisers of a run: timm's, with weight decay where it belongs and the rate its schedule gives."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.models.network import Network
from robust_train.nouns import Schedule
from robust_train.read.errors import ConfigError
from robust_train.read.registry import Number
from robust_train.settings.optimiser import Optimiser

ELEMENTWISE = ("sgd", "momentum", "adam", "adamw", "nadam", "nadamw", "lion", "rmsprop")
"""Optimisers whose update of a weight depends on that weight alone: those that sharding (ZeRO 1 and up) keeps right."""


COUNTER, OF_GROUP = "step", "group."
"""How counters end that some optimisers keep in a group (timm's Lamb, Adan, lookahead), and how state names them."""


def build(chosen: Optimiser, module: nn.Module, updates: int, where: str = "run") -> torch.optim.Optimizer:
    """timm's optimiser over a module's trained parameters; its rate is set anew before each of a run's `updates`.

    It is made with the largest rate of the run, which some remember: corrected decay is lr^2 / (largest lr) times the
    weight decay, and Muon's adamw_lr becomes a share of it.
    """
    from timm.optim import create_optimizer_v2

    options: dict = dict(chosen.options)
    if chosen.betas is not None:
        options["betas"] = chosen.betas
    # of a Network: under the names that its `no_weight_decay` uses
    model = module.model if isinstance(module, Network) else module
    try:
        made = create_optimizer_v2(
            model,
            opt=chosen.name,
            lr=peak(chosen.lr, updates),
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            filter_bias_and_bn=not chosen.decay_all,
            **options,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"{where}.optimiser: timm cannot make {chosen.name!r}: {error}{_nearest(chosen.name)}"
        ) from error
    if any(isinstance(value, (random.Random, torch.Generator)) for value in vars(inner(made)).values()):
        raise ConfigError(
            f"{where}.optimiser: {chosen.name!r} draws from a generator of its own, which no checkpoint holds: a run "
            "that goes on would be another. Choose an optimiser that draws nothing."
        )
    return made


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


def state_of(optimiser: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """What an optimiser remembers of a parameter: tensors and numbers by name; its group's counters as group.NAME."""
    own = inner(optimiser)
    counters = {key: value for key, value in _group(own, parameter).items() if key.endswith(COUNTER)}
    copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in counters.items()}
    return {**own.state.get(parameter, {}), **{OF_GROUP + key: value for key, value in copies.items()}}


def restore(optimiser: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Any]) -> None:
    """Give an optimiser back what it remembered of a parameter; counters lie on the host, as it made them."""
    own = inner(optimiser)
    held = {
        key: value.to(parameter.device if value.dim() else "cpu", copy=True) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
    group = _group(own, parameter)
    for key in [key for key in group if key.endswith(COUNTER) and OF_GROUP + key not in held]:
        del group[key]  # before the first step it was not there
    group.update({key.removeprefix(OF_GROUP): held.pop(key) for key in list(held) if key.startswith(OF_GROUP)})
    own.state[parameter] = held


def inner(optimiser: Any) -> torch.optim.Optimizer:
    """The optimiser that keeps the state: of timm's lookahead the one inside it, slow weights included."""
    return getattr(optimiser, "_base_optimizer", optimiser)


def _group(optimiser: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The group of a parameter."""
    groups = optimiser.param_groups
    return next((group for group in groups if any(member is parameter for member in group["params"])), {})


def filled(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of weights, zeros for those that no loss saw.

    So decay and momentum move them as they move all others, on every engine: shards that are cut from one flat vector
    cannot leave a weight of it alone; and ranks whose losses saw other weights still add up alike.
    """
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
