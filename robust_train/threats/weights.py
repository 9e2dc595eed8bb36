"""The threat model of weight perturbations: each weight tensor may move by a share of its own norm."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import PerImage, number
from robust_train.read.errors import ConfigError
from robust_train.read.registry import Number


@dataclass(frozen=True)
class Weights:
    """Weight perturbations v with ||v_l|| <= gamma ||w_l|| for every weight tensor l of more than one dimension.

        v_l = gamma ||w_l|| / ||g_l|| g_l,    g_l = the gradient of the group's mean loss for w_l

    One ascent step, taken for each group of consecutive images alone: no collective, and no result depends on ranks or
    parts. Biases, norms and embeddings stay. Wu et al. 2020 (arXiv 2004.05884). Costs 3
    forward passes for the direction, and those of the forward and backward at w + v.
    """

    gamma: Number  # length of the step as a share of each tensor's norm: 0.01 and 0.005 in the paper
    group: int = 32  # consecutive images that share a direction; a micro-batch holds whole groups

    def __post_init__(self) -> None:
        if isinstance(self.gamma, (int, float)) and not self.gamma >= 0:
            raise ValueError(f"gamma={self.gamma:g} must not be negative: it is a share of each tensor's norm")
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it counts images that share a direction")

    def __call__(
        self, network: Any, images: Tensor, targets: Tensor, key: Key, loss: PerImage = cross_entropy
    ) -> Tensor:
        """Logits [B, C] at each group's w + v. Their gradient flows into w; v is held. key: of the drop masks.

        Raises ConfigError where this process does not hold whole weights (ZeRO-3).
        """
        refuse_cut(network)
        key = key if key.row is not None else key.rows(torch.arange(len(images)))
        logits = []
        for first in range(0, len(images), self.group):
            rows = slice(first, first + self.group)
            with network.drops(key[rows]):
                v = self.direction(network, images[rows], targets[rows], loss)
                weights = dict(network.named_parameters())
                logits.append(moved(network, {name: weights[name] + v[name] for name in v})(images[rows]))
        return torch.cat(logits)

    def direction(
        self, network: Any, images: Tensor, targets: Tensor, loss: PerImage = cross_entropy
    ) -> dict[str, Tensor]:
        """v by parameter name. BatchNorm as it stands, nothing recorded; parameters and their gradients untouched."""
        weights = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if moves(name, p)}
        with torch.enable_grad(), network.attacked(network.now.norm):
            total = loss(moved(network, weights)(images), targets).sum()
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        return self.along(dict(zip(weights, gradients, strict=True)), weights)

    def along(self, gradients: Mapping[str, Tensor | None], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """v by name, of gradients and weights by name: of those that move and that the loss saw."""
        return {
            name: self.step(weights[name], gradient)
            for name, gradient in gradients.items()
            if gradient is not None and moves(name, weights[name])  # None: a head that this forward does not use
        }

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """v = gamma ||w|| / ||g|| g of one tensor; 0 where there is no gradient."""
        gradient = gradient.to(weight.dtype)
        length = gradient.norm()
        return number(self.gamma) * weight.detach().norm() / torch.where(length == 0, 1, length) * gradient


def moved(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The same network with other tensors in the places of some of its parameters; all else is shared.

    A copy and not torch.func.functional_call: that puts the parameters back when the call ends, and activations that
    are recomputed in the backward would then be of the unmoved network.
    """
    parameters = dict(network.named_parameters())
    shared = {id(tensor): tensor for tensor in (*parameters.values(), *network.buffers())}
    return deepcopy(network, shared | {id(parameters[name]): tensor for name, tensor in weights.items()})


def refuse_cut(network: nn.Module) -> None:
    """ConfigError where this process does not hold whole weights."""
    if getattr(network, "cut", False) or any(hasattr(parameter, "ds_id") for parameter in network.parameters()):
        raise ConfigError(
            "weights: their perturbation needs whole tensors, and ZeRO-3 shards them. Use engine.zero=2 or below"
        )


def moves(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight in the paper's sense: a trained one called so, of more than one dimension."""
    return parameter.requires_grad and parameter.dim() > 1 and name.endswith("weight")
