"""The threat model of weights that are wrong in proportion to their size: analogue chips, and an adversary of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.keyed import Key, normal
from robust_train.losses import kl
from robust_train.nouns import number
from robust_train.read.registry import Number
from robust_train.threats.weights import moved, refuse_cut

Follows = Literal["diagonal", "shift", "point"]
"""How moved weights follow the weights under differentiation."""


@dataclass(frozen=True)
class WeightBox:
    """Weights that may each move by a share of their own size: |theta* - theta| <= zeta |theta| + constant.

        a_0 = noise R,  R ~ N(0, 1);    theta*_t = theta + |theta| a_t + constant s_t
        a_{t+1} = clip(a_t + zeta / steps sign(grad), -zeta, zeta),    s_{t+1} = s_t + sign(grad) / steps

    grad: of KL(softmax f(x; theta) || softmax f(x; theta*)) for theta*, which needs no label. Buechel, Faber and Muir
    2022 (arXiv 2106.05009, algorithm 1). A weight of 0 cannot move unless `constant` lets it. Normalisation layers stay
    unless `norms`. Costs 3 forward passes a step.
    """

    zeta: Number  # half-width of the box, as a share of each weight
    steps: int = 10  # of the ascent, each of zeta / steps
    noise: float = 1e-3  # of the start: at the weights themselves the divergence has no gradient
    constant: float = 0.0  # half-width that every weight has beside
    norms: bool = False  # whether weights and biases of normalisation layers move too

    def __post_init__(self) -> None:
        if isinstance(self.zeta, (int, float)) and not self.zeta >= 0:
            raise ValueError(f"zeta={self.zeta:g} must not be negative: it is a share of each weight")
        if self.steps < 1 or not self.noise >= 0 or not self.constant >= 0:
            raise ValueError(
                f"steps={self.steps} counts from 1; noise={self.noise:g} and constant={self.constant:g} from 0"
            )

    def weights(self, network: nn.Module, frozen: bool = False) -> dict[str, Tensor]:
        """The parameters that move, by name: the trained ones, or `frozen` ones too.

        ConfigError where this process does not hold them whole.
        """
        refuse_cut(network)
        still = set() if self.norms else _of_norms(network)
        return {name: p for name, p in network.named_parameters() if (p.requires_grad or frozen) and name not in still}

    def search(
        self, network: Any, weights: Mapping[str, Tensor], images: Tensor, clean: Tensor, key: Key
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({name: a}, {name: s}) where the answers differ most from the logits `clean` [B, C] on these images.

        In the network's own mode, nothing recorded; parameters and their gradients untouched. key: of the start.
        """
        weights = {name: p.detach() for name, p in weights.items()}
        zeta = number(self.zeta)
        a = {name: self.noise * drawn(key.of(name), p) for name, p in weights.items()}
        s = {name: torch.zeros_like(p) for name, p in weights.items()}
        for _ in range(self.steps):
            points = {name: p.requires_grad_() for name, p in self.at(weights, a, s).items()}
            there: Any = moved(network, points)
            with torch.enable_grad(), there.mode(record=False):
                raised = kl(there(images), clean.detach()).sum()
            found = torch.autograd.grad(raised, list(points.values()), allow_unused=True)
            for name, gradient in zip(points, found, strict=True):
                if gradient is None:  # a head that this forward does not use
                    continue
                a[name] = (a[name] + zeta / self.steps * gradient.sign()).clamp(-zeta, zeta)
                s[name] = s[name] + gradient.sign() / self.steps
        return a, s

    def at(
        self,
        weights: Mapping[str, Tensor],
        a: Mapping[str, Tensor],
        s: Mapping[str, Tensor],
        follows: Follows = "diagonal",
    ) -> dict[str, Tensor]:
        """theta* by name. diagonal: its slope is 1 + sign(theta) a; shift: 1; point: none."""
        found = {}
        for name, weight in weights.items():
            own = weight if follows == "diagonal" else weight.detach()
            shift = own.abs() * a[name] + self.constant * s[name]
            found[name] = (weight.detach() if follows == "point" else weight) + shift
        return found


def mismatch(weights: Mapping[str, Tensor], zeta: float, key: Key) -> dict[str, Tensor]:
    """theta + zeta |theta| R by name, R ~ N(0, 1) without a graph: a chip drawn at random. Its slope is 1."""
    return {
        name: weight + zeta * weight.detach().abs() * drawn(key.of(name), weight.detach())
        for name, weight in weights.items()
    }


def drawn(key: Key, like: Tensor) -> Tensor:
    """N(0, 1) of a weight's shape, by the key and its first row alone."""
    row = torch.zeros(1, dtype=torch.int64) if key.row is None else key.row[:1]
    return normal(key.rows(row), (1, like.numel()), like.device, like.dtype).view_as(like)


def _of_norms(network: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers."""
    return {
        f"{name}.{own}" if name else own
        for name, layer in network.named_modules()
        if "Norm" in type(layer).__name__
        for own, _ in layer.named_parameters(recurse=False)
    }
