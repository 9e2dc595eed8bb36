"""Attacks guided by what changes of the whole answer: GAT and NuAT."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Norm
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, full
from robust_train.nouns import Batch, Goal, Loss, Objective, Score, State, number
from robust_train.objectives.single_step.leap import look, signs, within
from robust_train.read.registry import Number, objectives
from robust_train.threats.linf import Linf

UPDATES = "guided/updates"


@dataclass(frozen=True)
class Guide(Goal):
    """The label's cross-entropy, and weight times the distance from the clean answers, image by image."""

    objective: Guided
    clean: Tensor  # [B, C] logits
    weight: float

    def of(self, network: Any, images: Tensor, targets: Tensor, key: Any) -> Score:
        def score(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = network(points)
            apart = self.objective.apart(logits, self.clean[rows])
            return cross_entropy(logits, targets[rows]) + self.weight * apart, logits

        return score


@dataclass(frozen=True)
class Guided(Objective):
    """Cross-entropy on clean images, and the distance of the attacked answer from the clean one."""

    threat: Linf  # the ball
    weight: Number  # lambda; grows over the run in the papers
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    smoothing: float = 0.0  # label smoothing of the cross-entropy, in [0, 1)

    tells = (("loss/apart", "of the distance", "distance of the attacked answer from the clean one, before weight"),)

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs the distance of the answers")

    @abstractmethod
    def apart(self, attacked: Tensor, clean: Tensor) -> Tensor:
        """Distance of the answers, [B]; its mean is the term."""

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps, weight = batch.images, number(self.threat.eps), number(self.weight)
        with network.drops(key.of("drops")):
            clean = network(images)

            # every second update the attack raises the distance too; counted, for a key does not say its update
            turn = int(state.counts[UPDATES]) if UPDATES in state.counts else 0
            goal = Guide(self, clean.detach(), weight) if turn % 2 else None
            start = (images + eps / 2 * signs(images, key.of("start"))).clamp(0, 1)
            slope, _ = look(network, start, batch.targets, key.of("attack"), self.norm, goal)
            attacked = network(within(images, start + eps * slope.sign(), eps))

        natural = cross_entropy(clean, batch.targets, self.smoothing).mean()
        apart = self.apart(attacked, clean).mean()
        return Loss(
            natural + weight * apart,
            metrics={
                "loss/clean": natural,
                "loss/apart": apart,
                "accuracy/clean": correct(clean, batch.targets).mean(),
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
            counts={UPDATES: (batch.position == 0).sum()},  # one image of a global batch is its first
        )

    def cost(self) -> float:
        return 8


class Nuclear(torch.autograd.Function):
    """||A||_*, with the subgradient of least norm: U V^T over the singular values that are not 0.

    The derivative of a singular value is that of no other, so that equal and vanishing ones do no harm.
    """

    @staticmethod
    def forward(context: Any, matrix: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        there = s > s.amax() * max(matrix.shape) * torch.finfo(s.dtype).eps
        context.save_for_backward(((u * there)[:, :, None] * vh[None]).sum(1))
        return s.sum()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (slope,) = context.saved_tensors
        return gradient * slope


def nuclear_norm(matrix: Tensor) -> Tensor:
    """The sum of the singular values of [n, C], a scalar."""
    norm: Tensor = Nuclear.apply(matrix)
    return norm


@objectives.register("gat")
@dataclass(frozen=True)
class GAT(Guided):
    """Guided adversarial training: the squared distance of the two softmax answers.

        L = H(f(x), y) + weight mean_b |p - q|^2,    p = softmax f(x), q = softmax f(x')
        x_0 = x + eps/2 {-1, 1},    x' = clip(x_0 + eps sign grad G),    G = H; every second update H + weight |p - q|^2

    Sriramanan et al. 2020 (GAMA-GAT, NeurIPS). p in the attack is the update's own, held still. weight 10, times 4
    from epoch 85 of 100 on in the authors' CIFAR-10 run. Costs 8 forward passes.
    """

    examples = "- {threat: {use: linf, eps: 0.1}, weight: 10.0}"

    def apart(self, attacked: Tensor, clean: Tensor) -> Tensor:
        return (full(attacked).softmax(1) - full(clean).softmax(1)).square().sum(1)


@objectives.register("nuat")
@dataclass(frozen=True)
class NuAT(Guided):
    """Nuclear-norm adversarial training: the nuclear norm of a batch's change of logits.

        L = H(f(x), y) + weight / B ||f(x) - f(x')||_*,    x' as in GAT with this distance

    Sriramanan et al. 2021 (NeurIPS). The norm is taken of each group of consecutive images, in float32 or better, so
    that it depends on no rank: [group, C] matrices. weight grows from 0 by 4.5 / (E - 10) an epoch of E. Costs 8
    forward passes.
    """

    group: int = 32  # consecutive images whose changes make one matrix; a micro-batch holds whole groups

    examples = "- {threat: {use: linf, eps: 0.1}, weight: 4.0, norm: group, group: 4}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it counts images that make a matrix")

    def apart(self, attacked: Tensor, clean: Tensor) -> Tensor:
        changes = (full(attacked) - full(clean)).split(self.group)
        return torch.cat([(nuclear_norm(rows) / len(rows)).expand(len(rows)) for rows in changes])

    def groups(self) -> int:
        return self.group
