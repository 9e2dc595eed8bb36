"""Carlini and Wagner's attack and the elastic-net one: distance plus c times a hinge of the logits, c searched for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import noised, some
from robust_train.attacks.chance import answer, refuse_draws
from robust_train.attacks.given import sloped, wide
from robust_train.attacks.nearest import Nearest, NearestAttack, measured, measuring, wrong_classes
from robust_train.keyed import Key
from robust_train.losses import correct, labels_of, margin
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

INSIDE = 0.999999  # of [-1, 1], so that the inverse tanh of black and white is finite (the authors')
MOMENTS, FLOOR = (0.9, 0.999), 1e-8  # Adam's
PROGRESS = 0.9999  # of the loss a tenth of the steps ago: an image above it stops (the authors')
SLACK = 1e-5  # of the largest logit, how far beyond the boundary a point must lie: another forward rounds otherwise


@dataclass(frozen=True)
class _Hinged(NearestAttack):
    """Minimises distance + c max(g, -confidence) for several c, chosen for each image by bisection."""

    threat: Ball  # in whose norm the points are measured
    steps: int  # gradients per image and value of c; the papers take 10,000 (carlini-wagner) and 1,000 (ead)
    searches: int = 9  # values of c tried for each image
    step_size: float = 0.01  # of Adam in the tanh variable (carlini-wagner); of the first step in pixels (ead)
    confidence: float = 0.0  # kappa: how far the wrong logit must lead
    targeted: bool = False  # towards a wrong class drawn for each image
    first: float = 1e-3  # the first c
    abort: bool = True  # whether an image stops where a tenth of the steps did not lower its loss
    draws: int = 1  # passes averaged a look, over the network's own randomness: 20 where it draws noise

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise ValueError(f"steps={self.steps} and searches={self.searches} must be at least 1: they are counts")
        refuse_draws(self)
        if self.step_size <= 0 or self.first <= 0:
            raise ValueError(f"step_size={self.step_size:g} and first={self.first:g} must be positive")
        if self.confidence < 0:
            raise ValueError(f"confidence={self.confidence:g} must not be negative: points that fool are wanted")

    @abstractmethod
    def _walk(self, images: Tensor, c: Tensor) -> _Walk:
        """The start of a minimisation."""

    @abstractmethod
    def _score(self, perturbation: Tensor) -> Tensor:
        """[b] what should be small of the points that fool."""

    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        """Of all iterates that fool, for each image that of the smallest score; `targeted`: that land on its class."""
        labels = labels_of(targets)
        key = key if key.row is not None else key.rows(torch.arange(len(images), device=images.device))
        with measuring(network, key):
            with torch.no_grad():
                logits = answer(network, images, self.draws)
            goals = wrong_classes(key.of("goal"), labels, logits.shape[1]) if self.targeted else None
            search = _Search(network, self, images, labels, goals, within)
            search.fallen = correct(logits, labels) == 0
            for number in range(self.searches):
                with noised(network, key.of("search").at(number)):
                    if not search.run(last=number == self.searches - 1 >= 9):
                        break
            return measured(self.threat, network, images, targets, search.points, key)


@attacks.register("carlini-wagner")
@dataclass(frozen=True)
class CarliniWagner(_Hinged):
    """Carlini and Wagner's L2 attack: the least distance plus c times a hinge of the logits, by Adam behind a tanh.

        min_w ||p - x||_2^2 + c max(g(p), -confidence),    p = (tanh w + 1) / 2,    g = z_y - max_{j != y} z_j

    or g = max_{j != t} z_j - z_t towards a class t. c starts at `first`, is multiplied by 10 until the image falls,
    then bisected; each value starts again at the image, and every iterate that fools is a candidate. Carlini and Wagner
    2017 (arXiv 1608.04644, section VI). With 10 searches or more the last is at the least c that fooled, as in the
    authors' code; unlike there, an image stops by its own loss, not by the batch's, and distances are from the image
    itself, not from its tanh.

    Costs at most (2 searches steps + 1) draws + 1 forwards.
    """

    sets_aside = True
    usual_steps = 1000
    examples = """
    - {threat: {use: l2, eps: 0.5}, steps: 3, searches: 2, first: 1.0}
    - {threat: {use: l2, eps: 0.5}, steps: 3, searches: 2, targeted: true}
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.use != "l2":
            raise ValueError(f"threat={self.threat.use}: carlini-wagner makes the L2 norm small; give it l2")

    @property
    def label(self) -> str:
        return "cw"

    def cost(self) -> float:
        return (2 * self.searches * self.steps + 1) * self.draws + 1

    def _walk(self, images: Tensor, c: Tensor) -> _Walk:
        return _Tanh(images, c, self.confidence, self.step_size)

    def _score(self, perturbation: Tensor) -> Tensor:
        return perturbation.flatten(1).norm(dim=1)


@attacks.register("ead")
@dataclass(frozen=True)
class ElasticNet(_Hinged):
    """EAD, the elastic-net attack: the loss of Carlini and Wagner, and sparsity by shrinkage with momentum.

        s_{k+1} = S(v_k - a_k grad_v [||v_k - x||_2^2 + c max(g(v_k), -confidence)]),    a_k = step_size sqrt(1 - k / K)
        v_{k+1} = s_{k+1} + k / (k + 3) (s_{k+1} - s_k)

    S moves what has changed by more than beta back by beta, clips it to [0, 1], and undoes smaller changes. g and the
    search over c are those of carlini-wagner. Of the s_k that fool, that of the least beta ||.||_1 + ||.||_2^2 (rule
    EN) or ||.||_1 (rule L1) is kept. Chen et al. 2018 (arXiv 1709.04114, eq. 4 to 7 and algorithm 1); the threshold is
    beta whatever the step, as there.

    Costs at most (3 searches steps + 1) draws + 1 forwards.
    """

    beta: float = 1e-3  # the threshold of the shrinkage, and the weight of the L1 norm in rule EN
    rule: Literal["EN", "L1"] = "EN"  # what of the points that fool is least

    sets_aside = True
    usual_steps = 1000
    examples = """
    - {threat: {use: l1, eps: 1.5}, steps: 3, searches: 2, first: 1.0}
    - {threat: {use: l2, eps: 0.5}, steps: 3, searches: 2, abort: false, rule: L1}
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threat.use not in ("l1", "l2"):
            raise ValueError(f"threat={self.threat.use}: ead makes the L1 and L2 norms small; give it l1 or l2")
        if self.beta < 0:
            raise ValueError(f"beta={self.beta:g} must not be negative: pixels are moved back by it")

    @property
    def label(self) -> str:
        return f"ead-{self.rule.lower()}"

    def cost(self) -> float:
        return (3 * self.searches * self.steps + 1) * self.draws + 1

    def _walk(self, images: Tensor, c: Tensor) -> _Walk:
        return _Shrinking(images, c, self.confidence, self.step_size, self.steps, self.beta)

    def _score(self, perturbation: Tensor) -> Tensor:
        moved = perturbation.flatten(1)
        length = moved.abs().sum(1)
        return length if self.rule == "L1" else self.beta * length + moved.square().sum(1)


class _Search:
    """Where the search over c stands: for each image its c, the bracket around it, and the best point so far."""

    def __init__(
        self, network: Any, attack: _Hinged, images: Tensor, labels: Tensor, goals: Tensor | None, within: float | None
    ) -> None:
        self.network, self.attack, self.images = network, attack, images
        self.labels, self.goals, self.within = labels, goals, within
        self.points = images.clone()
        self.score = images.new_full((len(images),), torch.inf)
        self.c = torch.full_like(self.score, attack.first)
        self.low, self.high = torch.zeros_like(self.c), torch.full_like(self.c, torch.inf)
        self.fallen = torch.zeros_like(labels, dtype=torch.bool)  # wrong when clean, or near enough

    def run(self, last: bool) -> bool:
        """One minimisation of every image that is left, at its c; then the next c. False where none is left."""
        rows = (~self.fallen).nonzero().flatten()
        if last:
            self.c = self.high.clamp(max=1e10)
        hit = torch.zeros_like(self.fallen)
        hit[rows] = self._minimise(rows) if len(rows) else hit[rows]
        self.high = torch.where(hit, self.high.minimum(self.c), self.high)
        self.low = torch.where(hit, self.low, self.low.maximum(self.c))
        self.c = torch.where(self.high.isinf(), 10 * self.c, (self.low + self.high) / 2)
        return len(rows) > 0

    def _minimise(self, rows: Tensor) -> Tensor:
        """[b] bool: which of these images fell at this c."""
        attack, hit = self.attack, torch.zeros_like(rows, dtype=torch.bool)
        walk = attack._walk(self.images[rows], self.c[rows])
        place, before = torch.arange(len(rows), device=rows.device), self.score.new_full((len(rows),), torch.inf)
        every = max(1, attack.steps // 10)
        for step in range(attack.steps):
            now = rows[place]
            walk.step(self._sight(now), step)
            hit[place] |= walk.fooled
            self._keep(now, walk)
            if step % every == 0 and step + 1 < attack.steps:
                going = ~self.fallen[now]
                if attack.abort:
                    going &= walk.loss <= PROGRESS * before
                kept = going.nonzero().flatten()
                if not len(kept):
                    break
                place, before = place[kept], walk.loss[kept]
                walk.pack(kept)
        return hit

    def _keep(self, rows: Tensor, walk: _Walk) -> None:
        """Remember the points that fool and are better than those before."""
        moved = walk.found - walk.images
        score = self.attack._score(moved)
        won = (walk.fooled & (score < self.score[rows])).nonzero().flatten()
        self.points[rows[won]], self.score[rows[won]] = walk.found[won], score[won]
        if self.within is not None:
            far = self.attack.threat.distance(walk.images[won], walk.found[won])
            self.fallen[rows[won]] = far <= self.within

    def _sight(self, rows: Tensor) -> _Sight:
        goals = None if self.goals is None else self.goals[rows]
        return _Sight(self.network, rows, self.labels[rows], goals, self.attack.confidence, self.attack.draws)


@dataclass(frozen=True)
class _Sight:
    """What is seen of the network at some points: the hinge's argument g, its gradient, and who is fooled."""

    network: Any
    rows: Tensor  # [b] of the points, among the attacked images
    labels: Tensor
    goals: Tensor | None
    confidence: float
    draws: int

    def __call__(self, points: Tensor, gradient: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """(g [b], its gradient [b, ...] or zeros, fooled [b])."""
        with torch.set_grad_enabled(gradient), some(self.network, self.rows):
            points = points.detach().requires_grad_(gradient)
            logits = answer(self.network, points, self.draws)
            gap = margin(logits, self.labels) if self.goals is None else -margin(logits, self.goals)
            slope = sloped(torch.autograd.grad(gap.sum(), points)[0]) if gradient else torch.zeros_like(points)
        gap, beyond = gap.detach(), self.confidence + SLACK * logits.detach().abs().amax(1)
        return gap, slope, gap < -beyond


class _Walk(ABC):
    """A minimisation of ||p - x||_2^2 + c max(g(p), -confidence), a row an image."""

    def __init__(self, images: Tensor, c: Tensor, confidence: float) -> None:
        self.images, self.c, self.confidence = images, c, confidence
        self.found = images  # [b, ...] the candidate of the last step
        self.fooled = torch.zeros_like(c, dtype=torch.bool)  # [b] whether it fools
        self.loss = torch.zeros_like(c)  # [b] where the last gradient was taken

    @abstractmethod
    def step(self, sight: _Sight, number: int) -> None:
        """One gradient step."""

    def _descend(self, sight: _Sight, points: Tensor) -> tuple[Tensor, Tensor]:
        """(the loss's gradient at some points, who is fooled there); the loss is kept."""
        gap, slope, fooled = sight(points)
        moved, hinge = points - self.images, (gap + self.confidence).clamp(min=0)
        self.loss = moved.flatten(1).square().sum(1) + self.c * hinge
        return slope.mul_(wide(self.c * (hinge > 0), slope)).add_(moved, alpha=2), fooled

    def pack(self, rows: Tensor) -> None:
        """Keep these rows only."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


class _Tanh(_Walk):
    """Adam in w, p = (tanh w + 1) / 2."""

    def __init__(self, images: Tensor, c: Tensor, confidence: float, size: float) -> None:
        super().__init__(images, c, confidence)
        self.size = size
        self.w = (INSIDE * (2 * images - 1)).atanh()
        self.mean, self.square = torch.zeros_like(images), torch.zeros_like(images)

    def step(self, sight: _Sight, number: int) -> None:
        self.found = self.w.tanh().add_(1).div_(2)
        slope, self.fooled = self._descend(sight, self.found)
        slope.mul_(self.found).mul_(1 - self.found).mul_(2)  # dp/dw = 2 p (1 - p)
        first, second = MOMENTS
        self.mean.lerp_(slope, 1 - first)
        self.square.mul_(second).addcmul_(slope, slope, value=1 - second)
        length = self.size / (1 - first ** (number + 1))
        self.w.addcdiv_(self.mean, (self.square / (1 - second ** (number + 1))).sqrt_().add_(FLOOR), value=-length)


class _Shrinking(_Walk):
    """Shrinkage and momentum, in pixels."""

    def __init__(self, images: Tensor, c: Tensor, confidence: float, size: float, steps: int, beta: float) -> None:
        super().__init__(images, c, confidence)
        self.size, self.steps, self.beta = size, steps, beta
        self.ahead = images  # v

    def step(self, sight: _Sight, number: int) -> None:
        slope, _ = self._descend(sight, self.ahead)
        moved = self.ahead - self.size * (1 - number / self.steps) ** 0.5 * slope - self.images
        shrunk = moved.sign() * (moved.abs() - self.beta).clamp(min=0)
        before, self.found = self.found, (self.images + shrunk).clamp(0, 1)
        self.ahead = self.found + number / (number + 3) * (self.found - before)
        _, _, self.fooled = sight(self.found, gradient=False)
