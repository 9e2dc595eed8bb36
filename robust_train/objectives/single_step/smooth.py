"""Losses that may not jump from epoch to epoch: convergence smoothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.attacks.attacked import Norm
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Batch, Dataset, Loss, Objective, Part, State, number
from robust_train.objectives.single_step.leap import look, spread
from robust_train.read.registry import Number, objectives
from robust_train.threats.linf import Linf


class Level(nn.Module):
    """The mean loss of the last whole epoch, and the sums of the one that runs."""

    before: Tensor
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("before", "total", "images"):
            self.register_buffer(name, torch.zeros(()))


def jump(loss: Tensor, before: Tensor, bound: float) -> Tensor:
    """sgn(l - l_before) l where |l - l_before| > bound, else 0; its gradient is +- that of l."""
    apart = (loss - before).detach()
    return torch.where(apart.abs() > bound, apart.sign() * loss, 0 * loss)


@objectives.register("fgsm-cs")
@dataclass(frozen=True)
class FGSMCS(Objective):
    """One-step training whose loss on noisy images is held near its mean of the last epoch: convergence smoothing.

        x_0 = clip(x + U(-eps, eps)),    x' = clip(x_0 + eps sign grad H), not projected: up to 2 eps
        L = H(f(x'), y) + weight mean_g sgn(l_g - l_last) l_g [|l_g - l_last| > bound],    l_g = mean H(f(x_0), y)

    Zhao et al. 2023 (ConvergeSmooth). l_g is of a group of consecutive images, where the authors take a rank's batch:
    no result depends on ranks. l_last is 0 before the first epoch ends: weight is a schedule, 0 in the first two epochs
    and in the last. Costs 8 forward passes.
    """

    threat: Linf  # the ball that robustness is meant for
    epoch: int  # updates an epoch
    weight: Number = 1.0  # of the jump; a schedule switches it
    bound: float = 0.03  # a difference that counts as a jump
    group: int = 128  # consecutive images whose mean loss is compared; a micro-batch holds whole groups
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    smoothing: float = 0.4  # label smoothing of all losses but the attack's, in [0, 1)

    tells = (("loss/jump", "nats", "how far a group's loss left the last epoch's, before weight"),)
    examples = "- {threat: {use: linf, eps: 0.1}, epoch: 2, group: 4}"

    def __post_init__(self) -> None:
        if self.epoch < 1 or self.group < 1 or not self.bound >= 0:
            raise ValueError(f"epoch={self.epoch} and group={self.group} count from 1, and bound={self.bound:g} from 0")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps = batch.images, number(self.threat.eps)
        start = (images + spread(images, key.of("start"), eps)).clamp(0, 1)
        slope, _ = look(network, start, batch.targets, key.of("attack"), self.norm)

        with network.drops(key.of("drops")):
            noisy = network(start)
            attacked = network((start + eps * slope.sign()).clamp(0, 1))

        here = cross_entropy(noisy, batch.targets, self.smoothing)
        loss = cross_entropy(attacked, batch.targets, self.smoothing).mean()
        level: Any = state.parts["level"]
        before = level.before.to(here.dtype)
        jumps = torch.stack([len(g) * jump(g.mean(), before, self.bound) for g in here.split(self.group)]).sum()
        jumps = jumps / len(here)
        return Loss(
            loss + number(self.weight) * jumps,
            metrics={
                "loss/robust": loss,
                "loss/jump": jumps,
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
            sums={"loss": here.sum(), "images": here.new_tensor(float(len(here)))},
        )

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return {"level": Part(Level())}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        level: Any = state.parts["level"]
        level.total += sums["loss"]
        level.images += sums["images"]
        if (update + 1) % self.epoch == 0:
            level.before.copy_(level.total / level.images)
            level.total.zero_()
            level.images.zero_()

    def cost(self) -> float:
        return 8

    def groups(self) -> int:
        return self.group
