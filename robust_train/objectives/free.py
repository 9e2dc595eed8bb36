"""Adversarial training at the price of plain training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Batch, Dataset, Loss, Objective, Part, State, number
from robust_train.read.registry import objectives
from robust_train.threats.linf import Linf


class Perturbation(nn.Module):
    """One perturbation for each position of the global batch."""

    z: Tensor  # [batch, ...]

    def __init__(self, batch: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("z", torch.zeros(batch, *shape))


@objectives.register("free")
@dataclass(frozen=True)
class Free(Objective):
    """Cross-entropy at a perturbation that goes on from update to update: one backward moves weights and perturbation.

        L = H(f(clip(x + z, 0, 1)), y),    z <- clip(z + radii eps sign(dL/dz), -eps, eps)

    Shafahi et al. 2019 (arXiv 1904.12843, algorithm 1). Each batch comes m times (data: `repeated`), so that a
    run sees updates / m of them. z belongs to the position in the global batch, is 0 at
    first, outlives its batch as in the paper, and is saved. Its gradient is taken from the update's own backward.
    Summing z over the ranks sends a batch of images an update. Costs 3 forward passes, whatever m is.
    """

    threat: Linf  # the ball
    batch: int  # the run's batch: as many perturbations are kept
    radii: float = 1.0  # length of a perturbation's step, in radii
    smoothing: float = 0.0  # label smoothing, in [0, 1)

    examples = "- {threat: {use: linf, eps: 0.1}, batch: 16}"

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.radii > 0:
            raise ValueError(
                f"batch={self.batch} and radii={self.radii:g} must be positive: images, and a step's length"
            )

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        held: Any = state.parts["perturbation"]
        z: Tensor = held.z
        position, eps = batch.position, number(self.threat.eps)
        mine = z[position].to(batch.images.dtype)
        adversarial = (batch.images + mine).clamp(0, 1).requires_grad_()
        moved = torch.zeros_like(z)

        def move(gradient: Tensor) -> None:
            # as through the clip: a pixel that it holds has no slope
            inside = (batch.images + mine).clamp(0, 1) == batch.images + mine
            step = self.radii * eps * gradient.sign() * inside
            moved[position] = (mine + step).clamp(-eps, eps).to(moved.dtype)

        adversarial.register_hook(move)  # in the update's backward, which comes before its sums are read

        with network.drops(key.of("drops")):
            logits = network(adversarial)

        loss = cross_entropy(logits, batch.targets, self.smoothing).mean()
        metrics = {"loss/robust": loss, "accuracy/attacked": correct(logits, batch.targets).mean()}
        return Loss(loss, metrics, sums={"perturbation": moved})

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return {"perturbation": Part(Perturbation(self.batch, data.shape))}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        held: Any = state.parts["perturbation"]
        held.z.copy_(sums["perturbation"])

    def cost(self) -> float:
        return 3
