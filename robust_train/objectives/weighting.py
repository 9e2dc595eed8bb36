"""How much each image counts in a loss: alike, by confidence, by class; and weights dealt at random, as a control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key, partners
from robust_train.losses import distribution, full
from robust_train.nouns import Weighting
from robust_train.read.registry import weightings


@weightings.register("uniform")
@dataclass(frozen=True)
class Uniform(Weighting):
    """Every image alike: w = 1."""

    examples = "- {}"

    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Key
    ) -> Tensor:
        return full(clean).new_ones(len(clean))


@weightings.register("confidence")
@dataclass(frozen=True)
class Confidence(Weighting):
    """MART's: w = 1 - p_y, how unsure the network is of the clean image. With its gradient, as in the authors' code.

    p = softmax f(x). Wang et al. 2020 (ICLR, equation 11).
    """

    examples = "- {}"

    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Key
    ) -> Tensor:
        p = full(clean).softmax(1)
        return 1 - (p * distribution(targets, p.shape[1], dtype=p.dtype)).sum(1)


@weightings.register("class-costs")
@dataclass(frozen=True)
class ClassCosts(Weighting):
    """What a mistake of each class costs: w = c_y."""

    costs: tuple[float, ...]  # one a class, none negative

    examples = "- {costs: [1.0, 2.0, 0.5, 1.0, 1.0]}"

    def __post_init__(self) -> None:
        if not self.costs or min(self.costs) < 0:
            raise ValueError(f"costs={list(self.costs)} must be one number a class, none of them negative")

    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Key
    ) -> Tensor:
        if len(self.costs) < clean.shape[1]:
            raise ValueError(f"costs name {len(self.costs)} classes, and the network has {clean.shape[1]}: one a class")
        costs = full(clean).new_tensor(self.costs[: clean.shape[1]])
        return distribution(targets, clean.shape[1], dtype=costs.dtype) @ costs


@weightings.register("shuffled")
@dataclass(frozen=True)
class Shuffled(Weighting):
    """Another weighting's weights, dealt anew among the images of each group: the control that shows whose they are.

    As many small and large weights, at images they were not made for; without a gradient.
    """

    of: Weighting  # whose weights
    group: int = 32  # consecutive images among which they are dealt; a multiple of what `of` weighs together

    examples = "- {of: confidence, group: 4}"

    def __post_init__(self) -> None:
        if self.group < 1 or self.group % self.of.groups():
            raise ValueError(
                f"group={self.group} is no multiple of the {self.of.groups()} images that {self.of.use} weighs together"
            )

    def layers(self, network: Any) -> tuple[str, ...]:
        return self.of.layers(network)

    @torch.no_grad()
    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Key
    ) -> Tensor:
        weights = self.of(clean, attacked, targets, features, key)
        return weights[partners(key.of("shuffled"), self.group, len(weights), weights.device)]

    def groups(self) -> int:
        return self.group
