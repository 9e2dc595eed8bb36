"""The length of the step that fools, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Norm, attacked
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Batch, Loss, Objective, State, number
from robust_train.objectives.single_step.leap import look, spread, within
from robust_train.read.registry import objectives
from robust_train.threats.linf import Linf


@objectives.register("ssat")
@dataclass(frozen=True)
class SSAT(Objective):
    """One-step training that verifies the interval in between: the shortest share of the step that fools is trained on.

        delta = FGSM-RS;    x' = x + (k / checks) delta, the least k in 1, ..., checks - 1 that is misclassified, else
        x + delta; images that are misclassified at the random start stay as they are

    Kim, Lee and Lee 2021 (arXiv 2010.01799, algorithm 1). Shares are looked at in the attack's mode. Costs
    2 + (checks - 1) + 3 forward passes.
    """

    threat: Linf  # the ball
    checks: int = 3  # c: the interval is looked at in so many equal parts
    radii: float = 1.25  # length of the step, in radii: 10/255 at 8/255
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1)

    examples = "- {threat: {use: linf, eps: 0.1}}"

    def __post_init__(self) -> None:
        if self.checks < 1:
            raise ValueError(f"checks={self.checks} must be at least 1: the interval has so many parts")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.made(network, batch.images, batch.targets, key)
        with network.drops(key.of("drops")):
            logits = network(adversarial)
        loss = cross_entropy(logits, batch.targets, self.smoothing).mean()
        return Loss(loss, {"loss/robust": loss, "accuracy/attacked": correct(logits, batch.targets).mean()})

    def made(self, network: Any, images: Tensor, targets: Tensor, key: Key) -> Tensor:
        """Images to train on."""
        key, eps = key.naming(images), number(self.threat.eps)
        start = (images + spread(images, key.of("start"), eps)).clamp(0, 1)
        slope, there = look(network, start, targets, key.of("attack"), self.norm)
        move = within(images, start + self.radii * eps * slope.sign(), eps) - images
        share = torch.ones_like(there[:, 0])
        with attacked(network, self.norm, key.of("checks")), network.drops(None), torch.no_grad():
            for k in range(self.checks - 1, 0, -1):
                right = correct(network(images + k / self.checks * move), targets)
                share = torch.where(right > 0, share, k / self.checks)
        share = share * correct(there, targets)  # 0: fooled before the step
        return images + share.view(-1, *[1] * (images.dim() - 1)).to(images.dtype) * move

    def cost(self) -> float:
        return 2 + (self.checks - 1) + 3
