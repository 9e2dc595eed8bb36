"""A loss that is linear within the ball, by its values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.keyed import Key, uniform
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Attack, Batch, Dataset, Loss, Objective, Part, State, number
from robust_train.objectives.single_step.leap import spread
from robust_train.read.registry import Number, objectives
from robust_train.threats.linf import Linf


class Watch(nn.Module):
    """What the errors so far were, and how much the term weighs now."""

    weight: Tensor
    seen: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "seen", "total", "squares"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def see(self, error: Tensor, weight: float, decay: float) -> None:
        """Switch the weight on where an error exceeds mean + 2 sigma of those before it; else let it decay."""
        mean = self.total / self.seen.clamp(min=1)
        sigma = (self.squares / self.seen.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        jumps = (self.seen > 1) & (error > mean + 2 * sigma)
        self.weight.copy_(torch.where(jumps, torch.full_like(self.weight, weight), decay * self.weight))
        self.seen += 1
        self.total += error
        self.squares += error.square()


def bend(first: Tensor, second: Tensor, between: Tensor, share: Tensor) -> Tensor:
    """(l_c - (1 - a) l_a - a l_b)^2, [B]: how far a loss is from linear on a line."""
    return (between - (1 - share) * first - share * second).square()


@objectives.register("elle")
@dataclass(frozen=True)
class ELLE(Objective):
    """One-step training, and the loss's departure from linear between two random points of the ball.

        L = H(f(x'), y) + weight mean_b (l(x_c) - (1 - a) l(x_a) - a l(x_b))^2
        x_a, x_b ~ U(ball),    a ~ U(0, 1),    x_c = (1 - a) x_a + a x_b

    Rocamora et al. 2024 (ICLR). No second derivative is taken. adaptive (ELLE-A): the weight is 0 until an update's
    mean error exceeds mean + 2 sigma of all before it, then `weight`, decaying by `decay` an update. It is decided
    after the update and counts from the next on; the authors decide within it. Costs the attack, and 4 forwards and
    backwards: 2 + 12.
    """

    attack: Attack  # of one step: fgsm-rs, n-fgsm, fgsm
    weight: Number  # lambda: 4000 in the authors' script at 8/255
    threat: Linf  # the ball that the points are drawn in
    adaptive: bool = False  # switch the weight by the errors seen
    decay: float = 0.99  # of the adaptive weight, an update
    smoothing: float = 0.0  # label smoothing of the training loss, in [0, 1)

    tells = (("loss/bend", "nats squared", "squared departure from linear, before weight"),)
    examples = """
    - {attack: {use: fgsm-rs, threat: {use: linf, eps: 0.1}}, threat: {use: linf, eps: 0.1}, weight: 100.0}
    - {attack: {use: n-fgsm, threat: {use: linf, eps: 0.1}}, threat: {use: linf, eps: 0.1}, weight: 9.0, adaptive: true}
    """

    def __post_init__(self) -> None:
        if isinstance(self.weight, (int, float)) and not self.weight >= 0:
            raise ValueError(f"weight={self.weight:g} must not be negative: it weighs what is not linear")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay:g} must lie from 0 to 1: it is what an update keeps of the weight")

    def __call__(self, network: Any, batch: Batch, key: Key, state: State) -> Loss:
        images, eps = batch.images, number(self.threat.eps)
        adversarial = self.attack(network, images, batch.targets, key.of("attack"))
        first, second = ((images + spread(images, key.of(end), eps)).clamp(0, 1) for end in ("a", "b"))
        share = uniform(key.of("share"), (len(images), 1), images.device, images.dtype)
        along = share.view(-1, *[1] * (images.dim() - 1))

        with network.drops(key.of("drops")):
            logits = network(adversarial)
            with network.mode(record=False):
                ends = [network(points) for points in (first, second, (1 - along) * first + along * second)]

        loss = cross_entropy(logits, batch.targets, self.smoothing).mean()
        first, second, between = (cross_entropy(each, batch.targets) for each in ends)
        bends = bend(first, second, between, share[:, 0])
        watch: Any = state.parts["watch"]
        weight = watch.weight.to(bends.dtype) if self.adaptive else number(self.weight)
        error = bends.mean()
        return Loss(
            loss + weight * error,
            metrics={
                "loss/robust": loss,
                "loss/bend": error,
                "accuracy/attacked": correct(logits, batch.targets).mean(),
            },
            sums={"error": bends.sum(), "images": bends.new_tensor(float(len(bends)))},
        )

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        return {"watch": Part(Watch())}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        watch: Any = state.parts["watch"]
        watch.see(sums["error"] / sums["images"], number(self.weight), self.decay)

    def cost(self) -> float:
        return self.attack.cost() + 12
