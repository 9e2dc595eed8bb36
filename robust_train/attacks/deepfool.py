"""DeepFool: to the nearest face of the linearised network, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import some
from robust_train.attacks.chance import answer, refuse_draws
from robust_train.attacks.given import sloped, wide
from robust_train.attacks.nearest import Nearest, NearestAttack, measured, measuring
from robust_train.keyed import Key
from robust_train.losses import correct, labels_of
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

LEAST = 1e-4  # length of the shortest step: beside a face rounding, and at an exact tie 0 itself, would hold the image


@attacks.register("deepfool")
@dataclass(frozen=True)
class DeepFool(NearestAttack):
    """DeepFool: steps onto the nearest face of the network made linear, until the class changes.

        w_k = grad (z_k - z_y),    m_k = z_y - z_k,    k = argmin m_k / ||w_k||_q    over the candidates, at x_i
        r_i = m_k / ||w_k||_q unit(w_k),    x_{i+1} = clip(x_0 + (1 + overshoot) (r_0 + ... + r_i), 0, 1)

    q = 2 and unit(w) = w / ||w||_2 for L2, q = 1 and unit(w) = sign w for L-infinity. Moosavi-Dezfooli et al. 2016
    (arXiv 1511.04599, algorithm 2 and eq. 11). The overshoot is in every iterate, as in the authors' code, not only in
    the last; unlike theirs, points stay in [0, 1], and a step is at least 1e-4 long where theirs adds as much. Quick,
    and an upper bound only: linear faces are met exactly, curved ones by the path that led there.

    Costs at most steps candidates draws + 1 forwards; an image that has fallen is set aside.
    """

    threat: Ball  # l2 or linf, whose norm is made small
    steps: int  # linearisations per image at most; the authors' code takes 50
    candidates: int = 10  # classes looked at, the clean image's likeliest first, its own among them
    overshoot: float = 0.02  # eta: how much further than the face
    draws: int = 1  # passes averaged a look, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: l2, eps: 0.5}, steps: 2}
    - {threat: {use: linf, eps: 0.1}, steps: 2, candidates: 2}
    """

    def __post_init__(self) -> None:
        if self.threat.use not in ("l2", "linf"):
            raise ValueError(f"threat={self.threat.use}: DeepFool's steps are those of l2 or linf; give one of them")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1: it counts linearisations")
        refuse_draws(self)
        if self.candidates < 2:
            raise ValueError(f"candidates={self.candidates} must be at least 2: the image's own class is one of them")
        if self.overshoot < 0:
            raise ValueError(f"overshoot={self.overshoot:g} must not be negative: no step would reach its face")

    @property
    def label(self) -> str:
        return "deepfool"

    def cost(self) -> float:
        return self.steps * self.candidates * self.draws + 1

    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        """The first point on each image's path that fools."""
        labels = labels_of(targets)
        points, total = images.clone(), torch.zeros_like(images)
        rows = torch.arange(len(images), device=images.device)
        others: Tensor | None = None
        key = key if key.row is not None else key.rows(torch.arange(len(images), device=images.device))
        with measuring(network, key):
            for _ in range(self.steps):
                point = points[rows].detach().requires_grad_()
                with some(network, rows):
                    logits = answer(network, point, self.draws)
                if others is None:
                    others = _rivals(logits.detach(), labels, self.candidates)
                standing = (correct(logits, labels[rows]) == 1).nonzero().flatten()
                if not len(standing):
                    break
                move = self._onto_nearest_face(point, logits, labels[rows], others[rows])
                rows, move = rows[standing], move[standing]
                total[rows] += move
                points[rows] = self.threat.apply(images[rows], (1 + self.overshoot) * total[rows])
            return measured(self.threat, network, images, targets, points, key)

    def _onto_nearest_face(self, point: Tensor, logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        """[b, ...] the shortest move that makes some candidate's logit the label's, were the network linear."""
        own = logits.gather(1, labels[:, None])
        best, move = logits.new_full((len(point),), torch.inf), torch.zeros_like(point)
        for rank in range(others.shape[1]):
            ahead = (logits.gather(1, others[:, rank : rank + 1]) - own).squeeze(1)
            (slope,) = torch.autograd.grad(ahead.sum(), point, retain_graph=rank + 1 < others.shape[1])
            slope = sloped(slope)
            dual = slope.flatten(1).norm(dim=1, p=2 if self.threat.use == "l2" else 1)
            length = -ahead.detach() / dual  # inf where nothing slopes: that face is nowhere
            nearer = length < best
            best = torch.where(nearer, length, best)
            move = torch.where(wide(nearer, move), wide(length.clamp(min=LEAST), move) * self.threat.unit(slope), move)
        return move


def _rivals(logits: Tensor, labels: Tensor, candidates: int) -> Tensor:
    """[B, min(candidates, C) - 1] the likeliest classes but the label."""
    rest = logits.scatter(1, labels[:, None], -torch.inf)
    return rest.topk(min(candidates, logits.shape[1]) - 1, dim=1).indices
