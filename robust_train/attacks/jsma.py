"""Saliency maps: features that help one class and harm the others are moved far, one or two at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import attacked, exactly, masks
from robust_train.attacks.chance import answer, refuse_draws
from robust_train.attacks.given import sloped
from robust_train.attacks.nearest import wrong_classes
from robust_train.attacks.sight import refuse
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.nouns import Attack, Goal, number
from robust_train.read.registry import attacks
from robust_train.threats.pixels import L0, places


@attacks.register("jsma")
@dataclass(frozen=True)
class JSMA(Attack):
    """Jacobian saliency maps: move the features of the largest saliency by theta, until the class is as wanted.

        S = -a b where a > 0 > b,    a = sum_i dz_t / dx_i,    b = sum_i sum_{j != t} dz_j / dx_i,    i in the set

    over sets of one or two features that can still move; for theta < 0 the signs of a and b are turned, and away from
    the label t = y with them turned once more. A feature is one channel of a pixel; an image stops where no set is
    salient, or all would change more than eps pixels. Papernot et al. 2016 (arXiv 1511.07528, algorithms 2 and 3);
    untargeted: Wiyatno and Xu 2018 (arXiv 1808.07945). Gradients are those of the logits, not of probabilities. Two
    features at once compare all pairs: D^2 numbers an image of D features; take together=1 for large images.

    Costs at most 3 steps draws forwards; an image that is fooled is set aside.
    """

    threat: L0  # how many pixels may change: gamma times the image's
    steps: int  # saliency maps per image at most
    theta: float = 1.0  # what a chosen feature is moved by; 1 to white, -1 to black
    together: Literal[1, 2] = 2  # features moved a step
    towards: Literal["away", "likeliest", "random"] = "away"  # from the label, or to a wrong class
    draws: int = 1  # passes averaged a look, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: l0, eps: 6}, steps: 3}
    - {threat: {use: l0, eps: 5}, steps: 4, theta: -0.3, together: 1, towards: random}
    """

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must not be negative: it counts saliency maps")
        refuse_draws(self)
        if not 0 < abs(self.theta) <= 1:
            raise ValueError(f"theta={self.theta:g} must move a feature by at most 1, up or down: use 1 or -1")

    @property
    def label(self) -> str:
        return "jsma"

    def cost(self) -> float:
        return 3 * self.steps * self.draws

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph.

        Raises ValueError for a goal: saliency is made of logits.
        """
        refuse(self, goal, "raises no goal: its saliency is made of logits")
        labels = labels_of(targets)
        key = key.naming(images)
        points, rows = images.clone(), torch.arange(len(images), device=images.device)
        goals: Tensor | None = None
        with attacked(network, key=key), exactly(network):
            for step in range(self.steps):
                point = points[rows].requires_grad_()
                with masks(network, "off", key[rows], step):
                    logits = answer(network, point, self.draws)
                if goals is None:
                    goals = self._goals(logits.detach(), labels, key)
                standing = (~self._done(logits, goals[rows])).nonzero().flatten()
                if not len(standing):
                    break
                own = logits.gather(1, goals[rows][:, None]).sum()
                (helps,) = torch.autograd.grad(own, point, retain_graph=True)
                (every,) = torch.autograd.grad(logits.sum(), point)
                helps, every = sloped(helps), sloped(every)
                rows, point = rows[standing], point.detach()[standing]
                moved, found = self._moved(images[rows], point, helps[standing], (every - helps)[standing])
                points[rows] = moved
                rows = rows[found]
                if not len(rows):
                    break
        return points

    def _goals(self, logits: Tensor, labels: Tensor, key: Key) -> Tensor:
        """[B] the classes that saliency is for: the label itself where it is left."""
        if self.towards == "away":
            return labels
        if self.towards == "likeliest":
            return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        return wrong_classes(key.of("goals"), labels, logits.shape[1])

    def _done(self, logits: Tensor, goals: Tensor) -> Tensor:
        """[b] whether the class is as wanted."""
        return (logits.argmax(1) == goals) != (self.towards == "away")

    def _moved(self, images: Tensor, point: Tensor, helps: Tensor, harms: Tensor) -> tuple[Tensor, Tensor]:
        """The points after one step, and [b] bool whether any set was salient."""
        turn = (1 if self.theta > 0 else -1) * (-1 if self.towards == "away" else 1)
        a, b = turn * helps.flatten(1), turn * harms.flatten(1)
        can = (point < 1) if self.theta > 0 else (point > 0)
        changed = places(point != images).any(1)  # [b, places]
        left = int(number(self.threat.eps)) - changed.sum(1)
        channels = places(point).shape[1]
        old = changed[:, None].expand(-1, channels, -1).flatten(1)  # [b, features] in a pixel that has changed already
        can = can.flatten(1) & (old | (left > 0)[:, None])
        chosen = (_pairs if self.together == 2 else _singles)(a, b, can, old, left, changed.shape[1])
        step = self.theta * chosen.to(point.dtype).view_as(point)
        return (point + step).clamp(0, 1), chosen.any(1)


def _singles(a: Tensor, b: Tensor, can: Tensor, old: Tensor, left: Tensor, count: int) -> Tensor:
    """[b, features] bool: the one of the largest saliency; none where nothing is salient."""
    score = torch.where((a > 0) & (b < 0) & can, -a * b, -torch.inf)
    best, index = score.max(1, keepdim=True)
    return torch.zeros_like(can).scatter_(1, index, best > -torch.inf)


def _pairs(a: Tensor, b: Tensor, can: Tensor, old: Tensor, left: Tensor, count: int) -> Tensor:
    """[b, features] bool: the pair of the largest saliency, image by image; none where no pair is salient."""
    chosen = torch.zeros_like(can)
    place = torch.arange(a.shape[1], device=a.device) % count
    other_place = place[:, None] != place
    for row in range(len(a)):
        helps, harms = a[row][:, None] + a[row], b[row][:, None] + b[row]
        allowed = (helps > 0) & (harms < 0) & can[row] & can[row][:, None]
        allowed.fill_diagonal_(False)
        if left[row] == 1:  # no two new pixels
            allowed &= ~(other_place & ~old[row] & ~old[row][:, None])
        score = torch.where(allowed, -helps * harms, -torch.inf).flatten()
        best = score.argmax()
        if score[best] > -torch.inf:
            chosen[row, best // a.shape[1]] = chosen[row, best % a.shape[1]] = True
    return chosen
