"""Training on clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, sigmoid_cross_entropy
from robust_train.nouns import Batch, Loss, Objective, State
from robust_train.read.registry import objectives


@objectives.register("plain")
@dataclass(frozen=True)
class Plain(Objective):
    """Cross-entropy on clean images: no defence, the yardstick.

        L = l(f(x), y),    l = H, or the sigmoid loss of ViT's ImageNet recipes (arXiv 2106.10270)

    Costs one forward and backward: 3 forward passes.
    """

    smoothing: float = 0.0  # label smoothing, in [0, 1)
    loss: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid: each class a yes-or-no question

    examples = """
    - {smoothing: 0.1}
    - {}
    """

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        with network.drops(key.of("drops")):
            logits = network(batch.images)

        per_image = cross_entropy if self.loss == "softmax" else sigmoid_cross_entropy
        loss = per_image(logits, batch.targets, self.smoothing).mean()
        return Loss(loss, metrics={"loss/clean": loss, "accuracy/clean": correct(logits, batch.targets).mean()})

    def cost(self) -> float:
        return 3
