"""Ascent along gradients that are estimated from the network's answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, attacked
from robust_train.attacks.sight import Sight
from robust_train.attacks.standing import Standing
from robust_train.keyed import Key, bits, normal
from robust_train.losses import correct, cross_entropy, overtaking
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import Number, attacks
from robust_train.threats.ball import Ball

ADAM = (0.9, 0.999, 1e-8)  # beta_1, beta_2, epsilon


class QueryAscent(Attack):
    """Ascent along an estimate of the gradient: central differences of the loss along random directions.

    Starts at the image; each step ends with one forward that judges its point, and images that fell are set aside.
    """

    threat: Ball
    steps: int
    samples: int
    sigma: float
    compact: int
    drops: Drops
    draws: int

    def cost(self) -> float:
        return self.steps * (self.samples + 1) * self.draws + 3

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        return self.search(network, images, targets, key, goal).found

    def search(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Standing:
        """What stands and what fell, with the points found; `steps` counts steps of samples + 1 queries."""
        with attacked(network, key=key), torch.no_grad():
            standing = Standing(network, images, targets, key, self.compact)
            if not standing.count:
                return standing
            see = Sight(
                network, images, targets, standing.chunk_key, goal or Raising(self.raised), self.drops, self.draws
            )
            zero = torch.zeros_like(standing.images)
            walk = Walk(standing.images, zero, zero)
            for step in range(self.steps):
                slope = self._slope(standing, see, walk.points, step)
                walk = self.moved(walk, standing.images, slope, step)
                _, logits = see.look(walk.points, standing.key, step * (self.samples + 1), standing.row)
                standing.note(correct(logits, standing.labels) == 0, walk.points)
                if standing.due(step) and step + 1 < self.steps:
                    walk = standing.pack(walk)
                    if not standing.count:
                        return standing
            standing.close(walk.points)
        return standing

    def _slope(self, standing: Standing, see: Sight, points: Tensor, step: int) -> Tensor:
        """The estimate [b, ...] at some points."""
        drawn, asked = standing.key.of("directions").at(step), 0

        def value(at: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            return see.look(at, standing.key, step * (self.samples + 1) + asked, standing.row)[0]

        pairs = self.samples // 2
        return estimated(value, points, (self.direction(drawn.at(pair), points) for pair in range(pairs)), self.sigma)

    @staticmethod
    @abstractmethod
    def raised(logits: Tensor, targets: Tensor) -> Tensor:
        """[b] what is raised where the caller gives no goal."""

    @abstractmethod
    def direction(self, key: Key, like: Tensor) -> Tensor:
        """[b, ...] one direction an image."""

    @abstractmethod
    def moved(self, walk: Walk, images: Tensor, slope: Tensor, step: int) -> Walk:
        """The next point, inside ball and box."""


@dataclass(frozen=True)
class Walk:
    """Where such an ascent stands, a row an image."""

    points: Tensor  # [b, ...]
    first: Tensor  # [b, ...] running mean of the slopes
    second: Tensor  # [b, ...] and of their squares


def estimated(value: Callable[[Tensor], Tensor], points: Tensor, directions: Iterable[Tensor], sigma: float) -> Tensor:
    """g = 1 / (2 n sigma) sum_{i<=n} u_i (l(x + sigma u_i) - l(x - sigma u_i)), [b, ...], for n directions u_i.

    For a linear loss <w, x> that is (1 / n) sum u_i <u_i, w>. value: the loss [b] of points. Points beyond [0, 1] are
    asked for as they are: clipped ones would bend the estimate.
    """
    total, count = torch.zeros_like(points), 0
    for direction in directions:
        apart = value(points + sigma * direction) - value(points - sigma * direction)
        total += direction * apart.to(points.dtype).view(-1, *[1] * (points.dim() - 1))
        count += 1
    return total / (2 * count * sigma)


@attacks.register("nes")
@dataclass(frozen=True)
class NES(QueryAscent):
    """NES: ascent of the cross-entropy along a gradient estimated with Gaussian directions in antithetic pairs.

        g = 1 / (samples sigma) sum_i u_i (l(x + sigma u_i) - l(x - sigma u_i)),    u_i ~ N(0, I),  i <= samples / 2
        m' = momentum m + (1 - momentum) g,    z' = threat.step(z, m', step_size)

    Ilyas et al. 2018 (arXiv 1804.08598, algorithm 1, untargeted). Reads no gradient. Costs at most
    steps (samples + 1) draws + 3 forwards.
    """

    threat: Ball  # where it searches
    steps: int  # moves of the image
    step_size: Number  # in the threat's unit
    samples: int = 50  # queries a step, two a direction
    sigma: float = 0.001  # how far from the point the queries are, a standard deviation of each pixel
    momentum: float = 0.9  # share of the slopes before
    compact: int = 5  # steps between two packings of the images that still stand
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the queries, or redrawn
    draws: int = 1  # looks averaged a query, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    usual_steps, usual_way = 200, 40.0
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 3, step_size: 0.05, samples: 4, compact: 1}
    - {threat: {use: l2, eps: 0.5}, steps: 3, step_size: 0.3, samples: 4, compact: 1}
    - {threat: {use: l1, eps: 1.5, top: 4}, steps: 3, step_size: 1.0, samples: 4, compact: 1}
    """

    def __post_init__(self) -> None:
        _refuse_senseless(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum:g} is not in [0, 1): it is the share of the slopes before")

    @staticmethod
    def raised(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets)

    def direction(self, key: Key, like: Tensor) -> Tensor:
        return normal(key, like.shape, like.device, like.dtype)

    def moved(self, walk: Walk, images: Tensor, slope: Tensor, step: int) -> Walk:
        mean = self.momentum * walk.first + (1 - self.momentum) * slope
        z = self.threat.step(images, walk.points - images, mean, number(self.step_size))
        return replace(walk, points=self.threat.apply(images, z), first=mean)


@attacks.register("spsa")
@dataclass(frozen=True)
class SPSA(QueryAscent):
    """SPSA: the margin lowered by Adam along a gradient estimated with directions of random signs.

        g = 1 / (samples sigma) sum_i u_i (l(x + sigma u_i) - l(x - sigma u_i)),    u_i in {-1, 1}^d,  i <= samples / 2
        z' = project(z + step_size m / (sqrt v + 1e-8)),    m, v: Adam's means of g and g^2, without their bias

    l = max_{j != y} z_j - z_y. Uesato et al. 2018 (arXiv 1802.05666, algorithm 1). Reads no gradient. Costs at most
    steps (samples + 1) draws + 3 forwards.
    """

    threat: Ball  # where it searches
    steps: int  # moves of the image
    step_size: Number = 0.01  # Adam's, pixels in [0, 1] whatever the threat
    samples: int = 128  # queries a step, two a direction
    sigma: float = 0.01  # how far from the point the queries are, in each pixel
    compact: int = 5  # steps between two packings of the images that still stand
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the queries, or redrawn
    draws: int = 1  # looks averaged a query, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    usual_steps = 100
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 3, samples: 4, compact: 2, drops: frozen}
    - {threat: {use: l2, eps: 0.5}, steps: 2, samples: 4}
    """

    def __post_init__(self) -> None:
        _refuse_senseless(self)

    @staticmethod
    def raised(logits: Tensor, targets: Tensor) -> Tensor:
        return overtaking(logits, targets)

    def direction(self, key: Key, like: Tensor) -> Tensor:
        return ((bits(key, like.shape, like.device) >> 31) * 2 - 1).to(like.dtype)

    def moved(self, walk: Walk, images: Tensor, slope: Tensor, step: int) -> Walk:
        decay, decay2, least = ADAM
        first = decay * walk.first + (1 - decay) * slope
        second = decay2 * walk.second + (1 - decay2) * slope.square()
        mean, spread = first / (1 - decay ** (step + 1)), (second / (1 - decay2 ** (step + 1))).sqrt()
        z = walk.points - images + number(self.step_size) * mean / (spread + least)
        return Walk(self.threat.apply(images, self.threat.project(images, z)), first, second)


def _refuse_senseless(attack: NES | SPSA) -> None:
    """ValueError for numbers that neither attack can run with."""
    if attack.steps < 0:
        raise ValueError(f"steps={attack.steps} must not be negative: it counts moves of the image")
    if attack.samples < 2 or attack.samples % 2:
        raise ValueError(f"samples={attack.samples} must be even and at least 2: each direction takes two queries")
    if attack.sigma <= 0:
        raise ValueError(f"sigma={attack.sigma:g} must be positive: it is how far the queries are from the point")
    if attack.draws < 1:
        raise ValueError(f"draws={attack.draws} must be at least 1: it counts the looks averaged a query")
    if attack.compact < 1:
        raise ValueError(f"compact={attack.compact} must be at least 1: it counts steps between two packings")
