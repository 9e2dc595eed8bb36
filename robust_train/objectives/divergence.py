"""KL divergence, taken apart, and what the pieces can do that the whole cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.losses import full, kl, labels_of
from robust_train.nouns import Dataset, Divergence, Part, State
from robust_train.read.registry import divergences


def weighted_squares(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k (d_j - d_k)^2 with d = first - second, [B], of logits and weights [B, C].

    In O(C): (W sum_j w_j d_j^2 - (sum_j w_j d_j)^2) / 2, W = sum_j w_j, and d about its mean, for digits.
    """
    apart = full(first) - full(second)
    whole = weights.sum(1, keepdim=True)
    centred = (
        apart - (weights * apart).sum(1, keepdim=True) / whole
    )  # W sum w c^2 is then all: no difference of squares
    return whole.squeeze(1) * (weights * centred.square()).sum(1) / 2


def soft_cross_entropy(reference: Tensor, logits: Tensor) -> Tensor:
    """-sum_k sg softmax(reference)_k log softmax(logits)_k, [B]: KL and the reference's entropy."""
    return -(full(reference).detach().softmax(1) * full(logits).log_softmax(1)).sum(1)


@divergences.register("kl")
@dataclass(frozen=True)
class KL(Divergence):
    """The divergence itself: sum_k p_k (log p_k - log q_k), p of the reference. Gradients flow into both."""

    examples = "- {}"

    def __call__(self, reference: Tensor, logits: Tensor, targets: Tensor, state: State) -> Tensor:
        return kl(logits, reference)


@divergences.register("dkl")
@dataclass(frozen=True)
class DKL(Divergence):
    """KL in two pieces with its own gradient: one moves the reference, one the other answer.

        beta wMSE(sg p; n, sg a) + alpha (-sum_k sg p_k log q_k),    p = softmax n, q = softmax a

    At alpha = beta = 1 its gradients are KL's, into n and into a; its value is another.
    Cui et al. 2024 (arXiv 2305.13948, theorem 1). n: the reference's logits, a: the others'.
    """

    alpha: float = 1.0  # of the cross-entropy with soft labels
    beta: float = 1.0  # of the weighted squares

    examples = "- {}"

    def __call__(self, reference: Tensor, logits: Tensor, targets: Tensor, state: State) -> Tensor:
        weights = full(reference).detach().softmax(1)
        squares = weighted_squares(reference, logits.detach(), weights)
        return self.beta * squares + self.alpha * soft_cross_entropy(reference, logits)


class Table(nn.Module):
    """For each class the mean softened answer of the last whole epoch, and the sums of the one that runs."""

    rows: Tensor  # [C, C], each of sum 1
    total: Tensor  # [C, C]
    seen: Tensor  # [C]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.full((classes, classes), 1 / classes))
        self.register_buffer("total", torch.zeros(classes, classes))
        self.register_buffer("seen", torch.zeros(classes))

    def turn(self) -> None:
        """An epoch is over: means become rows; classes that were not seen keep theirs."""
        there = (self.seen > 0)[:, None]
        rows = self.total / self.total.sum(1, keepdim=True).clamp(min=torch.finfo(self.total.dtype).tiny)
        self.rows.copy_(torch.where(there, rows, self.rows))
        self.total.zero_()
        self.seen.zero_()


@divergences.register("ikl")
@dataclass(frozen=True)
class IKL(Divergence):
    """The pieces of KL, improved: the squares move both answers, and their weights come from class means.

        beta wMSE(w; n, a) + alpha (-sum_k sg p_k log q_k),    w = row y of the table, no gradient

    Row y: the mean of softmax(n / heat) over the last epoch's training images of class y, right or wrong; 1/C before
    the first is over. Cui et al. 2024 (arXiv 2305.13948, section 3.3). With `weights: image` w = softmax(n / heat) of
    the image itself, and no table. The table is a part: its sums go over all ranks once an update, C^2 numbers.
    """

    alpha: float  # of the cross-entropy with soft labels: 4 on CIFAR-10
    beta: float  # of the weighted squares: 20
    heat: float = 4.0  # T: how soft the answers in the weights are
    weights: Literal["class", "image"] = "class"  # whose answers weigh
    epoch: int = 0  # updates an epoch, for the table of class means

    examples = "- {alpha: 4.0, beta: 20.0, epoch: 2}"

    def __post_init__(self) -> None:
        if not self.heat > 0 or self.epoch < 0:
            raise ValueError(f"heat={self.heat:g} must be positive, and epoch={self.epoch} counts updates")
        if self.weights == "class" and not self.epoch:
            raise ValueError("epoch is missing: the table of class means turns over once so many updates are done")

    def __call__(self, reference: Tensor, logits: Tensor, targets: Tensor, state: State) -> Tensor:
        squares = self.squares(reference, logits, self.weighed(reference, targets, state))
        return self.beta * squares + self.alpha * soft_cross_entropy(reference, logits)

    def weighed(self, reference: Tensor, targets: Tensor, state: State) -> Tensor:
        """w [B, C]."""
        if self.weights == "image":
            return (full(reference).detach() / self.heat).softmax(1)
        table: Any = state.parts["table"]
        rows: Tensor = table.rows[labels_of(targets)]
        return rows.to(full(reference).dtype)

    def squares(self, reference: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        """[B]."""
        return weighted_squares(reference, logits, weights)

    def parts(self, data: Dataset) -> Mapping[str, Part]:
        return {"table": Part(Table(data.classes))} if self.weights == "class" else {}

    def sums(self, reference: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.weights == "image":
            return {}
        soft, labels = (full(reference).detach() / self.heat).softmax(1), labels_of(targets)
        total = soft.new_zeros(soft.shape[1], soft.shape[1]).index_add_(0, labels, soft)
        seen = soft.new_zeros(soft.shape[1]).index_add_(0, labels, soft.new_ones(len(soft)))
        return {"table": total, "seen": seen}

    def settle(self, state: State, sums: Mapping[str, Tensor], update: int) -> None:
        if self.weights == "image":
            return
        table: Any = state.parts["table"]
        table.total += sums["table"]
        table.seen += sums["seen"]
        if (update + 1) % self.epoch == 0:
            table.turn()


@divergences.register("gkl")
@dataclass(frozen=True)
class GKL(IKL):
    """IKL with its weights smoothed by a power: w^gamma, and the squares divided by the weights' own sum.

        wMSE(w^gamma; n, a) / (sum_j w_j^gamma)^2 for each image, or sum over a group / sum of these over the group

    Cui et al. 2026 (arXiv 2503.08038). The published normaliser is the batch's, `group`; then images meet in groups.
    At gamma 1 both are IKL. For distillation: weights image, gamma 0.3.
    """

    gamma: float = 1.0  # the power; 0.2 on CIFAR-10, 0.4 on CIFAR-100
    normaliser: Literal["image", "group"] = "image"  # what the squares are divided by
    group: int = 128  # consecutive images that are divided together; a micro-batch holds whole groups

    examples = "- {alpha: 4.0, beta: 20.0, epoch: 2, gamma: 0.2}"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0 or self.group < 1:
            raise ValueError(f"gamma={self.gamma:g} must not be negative, and group={self.group} counts images from 1")

    def squares(self, reference: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        weights = weights.pow(self.gamma)
        squares, norms = weighted_squares(reference, logits, weights), weights.sum(1).square()
        if self.normaliser == "image":
            return squares / norms
        pairs = zip(squares.split(self.group), norms.split(self.group), strict=True)
        return torch.cat([square / norm.mean() for square, norm in pairs])

    def groups(self) -> int:
        return self.group if self.normaliser == "group" else 1
