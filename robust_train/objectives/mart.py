"""Mistakes weigh more than doubts: MART, and losses of its shape with other weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, full, kl, labels_of
from robust_train.nouns import Attack, Batch, Loss, Objective, State, Weighting, number
from robust_train.objectives.weighting import Confidence
from robust_train.read.registry import Number, objectives


def boosted(logits: Tensor, targets: Tensor, slack: float = 0.0) -> Tensor:
    """-log q_y - log(1 + slack - max_{k != y} q_k), [B]: cross-entropy, and the strongest wrong class pushed down.

    log(1 - q_k) is taken as a logsumexp over the other classes, so that it is exact however sure the network is.
    """
    log_q = F.log_softmax(full(logits), 1)
    wrong = log_q.scatter(1, labels_of(targets)[:, None], -math.inf).argmax(1, keepdim=True)
    rest = log_q.scatter(1, wrong, -math.inf).logsumexp(1)
    if slack:
        rest = torch.logaddexp(rest, rest.new_full((), math.log(slack)))
    return cross_entropy(logits, targets) - rest


@objectives.register("mart")
@dataclass(frozen=True)
class Mart(Objective):
    """A boosted loss on attacked images, and the divergence weighed by how unsure the network is of the clean one.

        L = mean_i { B(q_i, y_i) + beta w_i KL(p_i || q_i) },    w = 1 - p_y
        B(q, y) = -log q_y - log(1 - max_{k != y} q_k),    p = softmax f(x), q = softmax f(x')

    x' raises the cross-entropy. Gradients flow into p, q and w. Wang et al. 2020 (ICLR, equation 11). Another
    `weighting` makes another method of the same shape. Both forwards have the same drop masks. Costs the attack and two
    forwards and backwards: 2K + 6 for K steps.
    """

    attack: Attack  # what makes x'; for the paper PGD with start noise
    beta: Number  # weight of the divergence: 5 in the paper's CIFAR-10 script
    weighting: Weighting = field(default_factory=Confidence)  # how much each image counts
    weighs: Literal["divergence", "loss"] = "divergence"  # which term the weights stand in
    loss: Literal["boosted", "softmax"] = "boosted"  # B as above, or the cross-entropy alone
    slack: float = 0.0  # the published code has log(1.0001 - max q): 1e-4 here; 0: exact

    tells = (
        ("loss/kl", "nats", "the weighed divergence, before beta"),
        ("weight/mean", "1", "the images' weights w"),
        ("weight/square", "1", "w squared; 1 beside a mean of 1: the weights say nothing"),
    )
    examples = """
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05, start: noise}, beta: 5.0}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, beta: 5.0, loss: softmax,
      weighs: loss, weighting: {use: shuffled, of: confidence, group: 4}, slack: 1e-4}
    - {attack: {use: pgd, threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}, beta: 5.0,
      weighting: {use: information, group: 4}}
    """

    def __post_init__(self) -> None:
        if isinstance(self.beta, (int, float)) and not self.beta >= 0:
            raise ValueError(f"beta={self.beta:g} must not be negative: it weighs the divergence")
        if not 0 <= self.slack < 1:
            raise ValueError(f"slack={self.slack:g} must lie in [0, 1): it stands in log(1 + slack - max q)")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"))

        with network.drops(key.of("drops")):
            clean = network(batch.images)
            attacked, features = (
                network(adversarial, taps=layers)
                if (layers := self.weighting.layers(network))
                else (
                    network(adversarial),
                    {},
                )
            )

        weights = self.weighting(clean, attacked, batch.targets, features, key.of("weighting"))
        if self.loss == "boosted":
            base = boosted(attacked, batch.targets, self.slack)
        else:
            base = cross_entropy(attacked, batch.targets)
        divergence = kl(attacked, clean)
        if self.weighs == "loss":
            base = weights * base
        else:
            divergence = weights * divergence
        natural, robust = base.mean(), divergence.mean()
        return Loss(
            natural + number(self.beta) * robust,
            metrics={
                "loss/robust": natural,
                "loss/kl": robust,
                "accuracy/clean": correct(clean, batch.targets).mean(),
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
                "weight/mean": weights.mean(),
                "weight/square": weights.square().mean(),  # 1 beside a mean of 1: the weights say nothing
            },
        )

    def cost(self) -> float:
        return self.attack.cost() + 6

    def groups(self) -> int:
        return self.weighting.groups()
