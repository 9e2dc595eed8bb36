"""Images whose loss falls after the step: a regulariser that keeps them few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Norm
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, full
from robust_train.nouns import Batch, Loss, Objective, State, number
from robust_train.objectives.single_step.leap import look, spread, within
from robust_train.read.registry import objectives
from robust_train.threats.linf import Linf


def abnormality(
    before: Tensor, after: Tensor, variation: Tensor, weights: tuple[float, float, float], live: bool = False
) -> Tensor:
    """lambda1 (n_a / B) (lambda2 A + lambda3 max(V_a - sg V_n, 0)) of B images, a scalar.

    before, after [B]: their losses at the start and after the step; abnormal are those whose loss fell. A: their mean
    fall; V: the mean variation [B] of abnormal and normal images. live: A has a gradient through `after`.
    """
    fell = (after < before).detach().to(variation.dtype)
    stayed = 1 - fell
    fall = before.detach() - (after if live else after.detach())
    count = fell.sum()
    mean_fall = (fell * fall).sum() / count.clamp(min=1)
    abnormal = (fell * variation).sum() / count.clamp(min=1)
    normal = ((stayed * variation).sum() / stayed.sum().clamp(min=1)).detach()
    first, second, third = weights
    return first * count / len(fell) * (second * mean_fall + third * (abnormal - normal).clamp(min=0))


@objectives.register("aaer")
@dataclass(frozen=True)
class AAER(Objective):
    """One-step training that keeps abnormal images few: those whose loss falls after a step that should raise it.

        L = H(f(x'), y) + mean_g lambda1 (n_a / B) (lambda2 A + lambda3 max(V_a - sg V_n, 0))
        V = mean |f(x_0) - f(x')|^2, f(x_0) held still: what the attack saw at its start

    Lin et al. 2023 (NeurIPS). A has no gradient in the published code, so lambda2 trains nothing there; `live` lets it
    train. Counts and means are of groups of consecutive images, where the authors take a rank's batch. Costs 5 forward
    passes: the start is the attack's own.
    """

    threat: Linf  # the ball that robustness is meant for
    lambdas: tuple[float, float, float] = (1.0, 2.5, 1.5)  # lambda1 to 3: for RS at 8/255; for N 1, 1.5, 0.15
    noise: float = 1.0  # half-width of the random start, in radii: RS 1, N 2
    radii: float = 1.25  # length of the step, in radii: RS 1.25, N 1
    project: bool = True  # bring the point into the ball: RS yes, N no
    live: bool = False  # whether the mean fall A has a gradient; published: no
    group: int = 128  # consecutive images that are counted together; a micro-batch holds whole groups
    norm: Norm = "group"  # BatchNorm in the attack: the groups' own, so that losses before and after compare
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1)

    tells = (("loss/abnormal", "nats", "the term of abnormal images, with its lambdas"),)
    examples = """
    - {threat: {use: linf, eps: 0.1}, group: 4}
    - {threat: {use: linf, eps: 0.1}, lambdas: [1.0, 1.5, 0.15], noise: 2.0, radii: 1.0, project: false, group: 4,
      live: true}
    """

    def __post_init__(self) -> None:
        if self.group < 1 or not self.noise >= 0:
            raise ValueError(f"group={self.group} counts images from 1, and noise={self.noise:g} radii from 0")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps = batch.images, number(self.threat.eps)
        start = (images + spread(images, key.of("start"), self.noise * eps)).clamp(0, 1)
        slope, there = look(network, start, batch.targets, key.of("attack"), self.norm)
        moved = start + self.radii * eps * slope.sign()
        adversarial = within(images, moved, eps) if self.project else moved.clamp(0, 1)

        with network.drops(key.of("drops")):
            attacked = network(adversarial)

        before, after = cross_entropy(there, batch.targets), cross_entropy(attacked, batch.targets)
        variation = (full(attacked) - there).square().sum(1)
        groups = zip(*(values.split(self.group) for values in (before, after, variation)), strict=True)
        terms = [len(b) * abnormality(b, a, v, self.lambdas, self.live) for b, a, v in groups]
        odd = torch.stack(terms).sum() / len(images)
        loss = cross_entropy(attacked, batch.targets, self.smoothing).mean()
        return Loss(
            loss + odd,
            metrics={
                "loss/robust": loss,
                "loss/abnormal": odd,
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
        )

    def cost(self) -> float:
        return 5

    def groups(self) -> int:
        return self.group
