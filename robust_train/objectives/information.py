"""Weights by how much of an image a network's features keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.losses import full
from robust_train.nouns import Weighting
from robust_train.read.errors import ConfigError
from robust_train.read.registry import weightings


def information(features: Tensor, variance: float | None = None) -> Tensor:
    """I_i = -log( 1/B sum_j exp(-|t_i - t_j|^2 / (2 sigma^2)) ) in [0, log B], [B], of features [B, D].

    The pairwise estimate of I(X; T) for T ~ N(t(x), sigma^2), image by image: Kolchinsky and Tracey 2017 (arXiv
    1706.02419). variance: sigma^2; None: the median of |t_i - t_j|^2 over pairs, over 2 log B, so that scale does not
    matter. B alone decides the bound: compare at equal B. Costs B^2 D operations.
    """
    t, count = full(features), len(features)
    squares = (t[:, None] - t[None]).square().sum(2)
    if variance is None:
        rows, columns = torch.triu_indices(count, count, 1, device=t.device)
        twice = squares[rows, columns].median() / max(math.log(count), 1e-12) if count > 1 else squares.new_ones(())
    else:
        twice = squares.new_full((), 2 * variance)
    near = -squares / twice.clamp(min=torch.finfo(squares.dtype).tiny)  # all alike: 0 over something
    return math.log(count) - near.logsumexp(1)


@weightings.register("information")
@dataclass(frozen=True)
class Information(Weighting):
    """InfoAT's idea, our definition: images whose features keep much of the input are attacked easily, and count more.

        w_i = n exp(I_i / tau) / sum_j exp(I_j / tau),    I as in `information`, of attacked images' features in a group

    Xu et al. 2022 (arXiv 2206.12292), of which only the abstract could be read: estimator, layer and weights are ours.
    Weights of a group have mean 1 and no gradient. Each group of consecutive images is by itself: no collective, and no
    result depends on ranks.
    """

    group: int = 128  # consecutive images whose features are compared; n; a micro-batch holds whole groups
    tau: float = 1.0  # temperature: the larger, the more alike the weights
    layer: str = ""  # whose output is looked at, averaged over its places; "": the network's last stage
    variance: float | None = None  # sigma^2; null: the median of squared distances over 2 log n
    most: float | None = None  # no weight above it (outliers have much information too); null: as they come

    examples = """
    - {group: 4}
    - {group: 4, tau: 0.5, layer: head, variance: 1.0, most: 2.0}
    """

    def __post_init__(self) -> None:
        if self.group < 2 or not self.tau > 0:
            raise ValueError(f"group={self.group} compares images from 2 on, and tau={self.tau:g} must be positive")
        if self.variance is not None and not self.variance > 0:
            raise ValueError(f"variance={self.variance:g} must be positive: it is that of the features' noise")
        if self.most is not None and not self.most >= 1:
            raise ValueError(f"most={self.most:g} is below 1, the mean of the weights")

    def layers(self, network: Any) -> tuple[str, ...]:
        if self.layer:
            return (self.layer,)
        if not network.stages:
            raise ConfigError("weighting.layer: the network names no stages, so say which layer's output to look at")
        return (network.stages[-1],)

    @torch.no_grad()
    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Key
    ) -> Tensor:
        (seen,) = features.values()
        return torch.cat([self.weights(information(t, self.variance)) for t in pooled(seen).split(self.group)])

    def weights(self, found: Tensor) -> Tensor:
        """[n] of the information [n] of a group."""
        weights = len(found) * (found / self.tau).softmax(0)
        return weights if self.most is None else weights.clamp(max=self.most)

    def groups(self) -> int:
        return self.group


def pooled(features: Tensor) -> Tensor:
    """[B, D]: maps [B, D, H, W] averaged over places, tokens [B, N, D] over tokens."""
    if features.dim() == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.dim() == 3 else features.flatten(1)
