"""Clean and attacked images together, under matched masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, distribution, sigmoid_cross_entropy
from robust_train.nouns import Attack, Batch, Loss, Objective, PerImage, Raising, State, number
from robust_train.read.registry import Number, objectives

LOSSES: dict[str, PerImage] = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}


@objectives.register("pyramid")
@dataclass(frozen=True)
class PyramidTraining(Objective):
    """Adversarial images as augmentation: the clean loss plus that of images attacked towards random classes.

        L = l(f_M(x), y) + weight l(f_M(x'), y),    x' = argmin_x' l(f_M(x'), t),    t ~ U{classes}

    Herrmann et al. 2022 (arXiv 2111.15121, section 3), where l is the sigmoid loss for ViT and `weight` is 1. f_M: with
    dropout and stochastic depth M, the same in both forwards; an attack with `drops: frozen` has these masks too. The
    attack is PGD with the pyramid threat model, 5 steps, `targets: random`, `start: zero`, `drops: frozen` and `norm:
    group`. Costs the attack and two forwards and backwards: 2K + 6 for K steps.
    """

    attack: Attack  # what makes the second half of the training images
    loss: Literal["softmax", "sigmoid"] = "softmax"  # of the training and of the attack
    weight: Number = 1.0  # of the attacked images' loss
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1); the attack's loss has none

    examples = """
    - {attack: {use: pgd, threat: {use: pyramid, eps: 0.02, levels: [4, 2, 1], multipliers: [4.0, 2.0, 1.0]}, steps: 2,
      step_size: 0.01, start: zero, targets: random, norm: group, drops: frozen}, loss: sigmoid}
    """

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs the attacked images' loss")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        loss = LOSSES[self.loss]
        adversarial = self.attack(network, batch.images, batch.targets, key.of("attack"), Raising(loss))
        targets = distribution(batch.targets, network.classes, self.smoothing, batch.images.dtype)

        with network.drops(key.of("attack").of("drops")):  # the masks that a frozen attack met
            clean = network(batch.images)
            attacked = network(adversarial)

        natural, robust = loss(clean, targets).mean(), loss(attacked, targets).mean()
        return Loss(
            natural + number(self.weight) * robust,
            metrics={
                "loss/clean": natural,
                "loss/robust": robust,
                "accuracy/clean": correct(clean, batch.targets).mean(),
                "accuracy/attacked": correct(attacked, batch.targets).mean(),
            },
        )

    def cost(self) -> float:
        return self.attack.cost() + 6
