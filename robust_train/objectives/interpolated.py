"""Mixup on clean images and on attacked ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.data.mix import Mix
from robust_train.keyed import Key, integers
from robust_train.losses import cross_entropy, distribution
from robust_train.nouns import Attack, Batch, Loss, Objective, State
from robust_train.read.registry import objectives


@objectives.register("interpolated")
@dataclass(frozen=True)
class Interpolated(Objective):
    """Mixup, or manifold mixup, on clean images and on attacked images, in equal parts.

        L = 1/2 H(f(M(x)), M(y)) + 1/2 H(f(M'(x')), M'(y)),    M(a) = lam a + (1 - lam) a∘pi

    x' = attack(x), made before mixing. lam ~ Beta(alpha, alpha) and the permutation pi are drawn anew for each term
    and each group of consecutive images, which mix among themselves. Manifold mixup mixes the output of a layer, drawn
    anew for each term and update and the same for all images; pixels are mixed where the input is drawn. Lamb et al.
    2019 (arXiv 1906.06784, algorithm 1). Costs the attack and two forwards and backwards: 2K + 6 for K steps.
    """

    attack: Attack  # what makes the attacked half, from unmixed images
    alpha: float = 1.0  # of lam's Beta distribution: 1 for pixels, 2 for layers in the paper; 0: nothing is mixed
    group: int = 128  # images that mix among themselves (the paper's batch); a micro-batch holds whole groups
    layers: Literal["input", "stages"] | tuple[str, ...] = "input"  # where: pixels; pixels or a stage; or these layers
    smoothing: float = 0.0  # label smoothing, in [0, 1), before mixing

    examples = """
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, group: 4}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, group: 4, layers: stages}
    """

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha:g} must not be negative: it shapes Beta(alpha, alpha)")
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it counts images that mix among themselves")
        if not self.layers:
            raise ValueError('layers is empty: name one or more ("input" for the pixels), or say layers=input')

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"))

        clean = self._mixed(network, batch.images, batch.targets, key.of("clean"))
        robust = self._mixed(network, adversarial, batch.targets, key.of("robust"))

        return Loss((clean + robust) / 2, metrics={"loss/clean": clean, "loss/robust": robust})

    def _mixed(self, network: Any, images: Tensor, targets: Tensor, key: Key) -> Tensor:
        """The mean of H(f(M(a)), M(y)) over the images a."""
        mix = Mix.draw(key.of("mix"), self.alpha, self.group, len(images), images.device)
        with network.drops(key.of("drops")):
            logits = network(images, swaps={self._layer(network, key.of("layer")): mix})
        return cross_entropy(logits, mix(distribution(targets, network.classes, self.smoothing, images.dtype))).mean()

    def _layer(self, network: Any, key: Key) -> str:
        """Where this update mixes, "" for the pixels. Drawn on the host from the key alone: the same on every rank."""
        if self.layers == "input":
            return ""
        choices = ("input", *network.stages) if self.layers == "stages" else self.layers
        drawn = integers(key.rows(torch.zeros(1, dtype=torch.int64)), (1,), len(choices))
        layer = choices[int(drawn)]
        return "" if layer == "input" else layer

    def cost(self) -> float:
        return self.attack.cost() + 6

    def groups(self) -> int:
        return self.group
