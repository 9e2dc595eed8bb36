"""Answers that hold when the weights are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, kl
from robust_train.nouns import Batch, Loss, Objective, State, number
from robust_train.read.registry import Number, objectives
from robust_train.threats.weight_box import Follows, WeightBox, mismatch
from robust_train.threats.weights import moved


@objectives.register("weight-adversary")
@dataclass(frozen=True)
class WeightAdversary(Objective):
    """Cross-entropy on clean images, and what an adversary of the weights can change of the network's answer.

        L = H(f(x; theta'), y) + beta KL(softmax f(x; theta) || softmax f(x; theta*))
        theta* = the worst found in the box zeta |theta|,    theta' = theta + forward_noise |theta| R, of slope 1

    Buechel, Faber and Muir 2022 (arXiv 2106.05009, equations 1 to 4): TRADES in the space of weights, and no labels in
    the attack. theta* moves with theta: `follows` says how. theta* and R are of each group of consecutive images: no
    collective, and no result depends on ranks. All forwards have the same drop masks; those at other weights record no
    statistics. Needs whole tensors: ConfigError under ZeRO 3. Costs 3 N + 6 forward passes for N steps (4 where the
    point is held), and 3 with noise in the forward.
    """

    box: WeightBox  # where the weights may move, and how their worst is sought
    beta: Number  # weight of the divergence: 0.1 to 0.25 in the paper
    follows: Follows = "diagonal"  # slope of theta*: 1 + sign(theta) a (published), 1, or none: held still
    forward_noise: float = 0.0  # eta: the cross-entropy's weights are off by this share; 0.3 in the paper
    group: int = 32  # consecutive images that share moved weights; a micro-batch holds whole groups
    smoothing: float = 0.0  # label smoothing of the cross-entropy, in [0, 1)

    tells = (
        ("loss/kl", "nats", "divergence of the answer at the worst weights, before beta"),
        ("accuracy/weights", "share", "share that is right at the worst weights"),
    )
    examples = """
    - {box: {zeta: 0.1, steps: 2, noise: 0.1}, beta: 0.5, group: 4}
    - {box: {zeta: 0.1, steps: 2, noise: 0.1, constant: 0.01, norms: true}, beta: 0.5, group: 4, follows: shift,
      forward_noise: 0.1}
    - {box: {zeta: 0.1, steps: 2, noise: 0.1}, beta: 0.5, group: 4, follows: point}
    """

    def __post_init__(self) -> None:
        if isinstance(self.beta, (int, float)) and not self.beta >= 0:
            raise ValueError(f"beta={self.beta:g} must not be negative: it weighs the divergence")
        if self.group < 1 or not self.forward_noise >= 0:
            raise ValueError(
                f"group={self.group} counts images from 1, and forward_noise={self.forward_noise:g} from 0"
            )

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        key = key.naming(batch.images)
        parts = [slice(first, first + self.group) for first in range(0, len(batch), self.group)]
        found = [self._of(network, batch.images[rows], key[rows]) for rows in parts]
        clean, noisy, wrong = (torch.cat(logits) for logits in zip(*found, strict=True))

        loss = cross_entropy(noisy, batch.targets, self.smoothing).mean()
        apart = kl(wrong, clean).mean()
        return Loss(
            loss + number(self.beta) * apart,
            metrics={
                "loss/clean": loss,
                "loss/kl": apart,
                "accuracy/clean": correct(clean, batch.targets).mean(),
                "accuracy/weights": correct(wrong, batch.targets).mean(),
            },
        )

    def _of(self, network: Any, images: Tensor, key: Key) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of a group at theta, theta' and theta*."""
        weights = self.box.weights(network)
        with network.drops(key.of("drops")):
            clean = noisy = network(images)
            if self.forward_noise:
                chip = mismatch(weights, self.forward_noise, key.of("noise"))
                noisy = _at(network, chip, images)
            a, s = self.box.search(network, weights, images, clean, key.of("box"))
            held = torch.no_grad() if self.follows == "point" else torch.enable_grad()
            with held:
                wrong = _at(network, self.box.at(weights, a, s, self.follows), images)
        return clean, noisy, wrong

    def cost(self) -> float:
        return 3 * self.box.steps + 3 + (1 if self.follows == "point" else 3) + 3 * (self.forward_noise > 0)

    def groups(self) -> int:
        return self.group


def _at(network: Any, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits with other weights in place; nothing is recorded."""
    there: Any = moved(network, weights)
    with there.mode(record=False):
        logits: Tensor = there(images)
    return logits
