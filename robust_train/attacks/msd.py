"""Multi steepest descent: one perturbation for a union of balls, each step in the ball where it hurts most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked
from robust_train.attacks.pgd import Best
from robust_train.attacks.sight import Sight
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import Number, attacks
from robust_train.threats.ball import Ball


@attacks.register("msd")
@dataclass(frozen=True)
class MSD(Attack):
    """At each step a candidate for every ball from one gradient, and for every image the one with the largest loss.

        z_0 = 0,    z^p = threat_p.step(z_k, grad l(f(x + z_k), y), step_size_p),    z_{k+1} = argmax_p l(f(x + z^p), y)

    The best iterate is kept; it lies in one of the balls. Maini, Wong and Kolter 2020 (arXiv 1909.04068, algorithm 1),
    whose number of pixels in an L1 step is drawn from 5 to 20 and here is the threat model's own. Costs 2 + n forward
    passes a step for n balls: the candidates' losses are those of the iterates, so the best costs no more.
    """

    threats: tuple[Ball, ...]  # the balls whose union it searches: linf, l2, l1
    steps: int  # gradients per image
    step_sizes: tuple[Number, ...]  # one for each threat model, in its unit
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    examples = """
    - {threats: [{use: linf, eps: 0.1}, {use: l2, eps: 0.5}, {use: l1, eps: 1.5, top: 4}], steps: 2, step_sizes: [0.05,
      0.3, 1.0]}
    - {threats: [{use: linf, eps: 0.1}], steps: 2, step_sizes: [0.05], norm: group, drops: redrawn}
    """

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative: it counts gradients")
        if not self.threats or len(self.threats) != len(self.step_sizes):
            raise ValueError(
                f"{len(self.threats)} threats and {len(self.step_sizes)} step sizes: give one step size a threat"
            )

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], each inside one of the threat models, without a graph."""
        key = key.naming(images)
        first = self.threats[0]  # balls share their coordinates: z is the perturbation
        with attacked(network, self.norm, key):
            z, best = first.zero(images), Best(first)
            if not self.steps:
                return first.apply(images, z)
            see = Sight(network, images, targets, key, goal or Raising(cross_entropy), self.drops)
            for step in range(self.steps):
                score, slope, _ = see.slope(first.apply(images, z), key, step)
                if step == 0:
                    best.see(z, score)
                steepest = Best(first)
                for threat, size in zip(self.threats, self.step_sizes, strict=True):
                    candidate = threat.step(images, z, slope, number(size))
                    steepest.see(candidate, see.look(threat.apply(images, candidate), key, step)[0])
                z = steepest.z
                best.see(z, steepest.value)  # type: ignore[arg-type]  # some threat was looked at
            return first.apply(images, best.z)

    def reach(self) -> tuple[Ball, ...]:
        """The balls of the union."""
        return self.threats

    def cost(self) -> float:
        return self.steps * (2 + len(self.threats))
