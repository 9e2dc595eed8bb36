"""FAB: the nearest point that fools, by steps onto the boundary as the network's gradient draws it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import attacked, masks
from robust_train.attacks.chance import answer, refuse_draws
from robust_train.attacks.given import Towards, aimed, classes_of, sloped
from robust_train.attacks.nearest import Nearest, NearestAttack, measured
from robust_train.attacks.sight import refuse
from robust_train.attacks.standing import Standing
from robust_train.keyed import Key, normal, uniform
from robust_train.losses import correct
from robust_train.nouns import Goal, number
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball
from robust_train.threats.hyperplane import dual_norm, onto_hyperplane

BIAS = 0.1  # alpha_max: most of the step from the image itself in a mixture
OVERSHOOT = 1.05  # eta: how far beyond the linearised boundary a step goes
RETREAT = 0.9  # beta: share of its perturbation that a point that fools keeps


@attacks.register("fab")
@dataclass(frozen=True)
class FAB(NearestAttack):
    """Fast Adaptive Boundary: steps onto the linearised boundary, drawn towards the image.

        d(u) = the least step from u, inside the box, onto {v : g(x_k) + <grad g(x_k), v - x_k> = 0},    g = z_t - z_y
        x_{k+1} = clip((1 - a) (x_k + eta d(x_k)) + a (x + eta d(x))),    a = min(|d(x_k)| / (|d(x_k)| + |d(x)|), 0.1)

    eta = 1.05. Where x_{k+1} fools it counts if it is nearer to x than any before, and the search goes on from
    x + 0.9 (x_{k+1} - x). With `targets` = T (FAB-T) t is each of the T likeliest wrong classes of the clean image in
    turn; with 0 the class whose |g| / ||grad g||_dual is least at x_k, at one backward pass a class and step. The first
    run starts from the image, restarts within eps / 2 at random. Croce and Hein 2020 (arXiv 1907.02044, algorithm 1;
    FAB-T: 2003.01690). As in the authors' code a point beyond eps by rounding does not count. Unlike there, an image is
    set aside as soon as it has a point within eps, and pixels of the smallest gradients move too: there |w| < 1e-8
    stands still, which stops L2 and L1 on a saturated network.

    Called, or by `search`, it looks within eps; by `nearest` anywhere. Costs at most 1 + restarts T (3 steps + 1), and
    with T = 0 and K classes 1 + restarts ((K + 1) steps + 1), the steps' times `draws`.
    """

    threat: Ball  # whose norm is made small, and within whose eps a point counts
    steps: int  # of each run: 100 to judge
    targets: int = 0  # 0: towards the nearest class at each step; else so many classes, one run each
    restarts: int = 1  # runs for each target; all but the first start at random
    towards: Towards = None  # in the place of targets: a class, or one for each image
    compact: int = 10  # steps between two packings of the images that still stand
    draws: int = 1  # passes averaged a look, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    usual_steps = 100
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 3, targets: 2, compact: 2}
    - {threat: {use: l2, eps: 0.3}, steps: 3, restarts: 2}
    - {threat: {use: l1, eps: 1.5}, steps: 3, targets: 2}
    """

    def __post_init__(self) -> None:
        if self.threat.use not in ("linf", "l2", "l1"):
            raise ValueError(f"threat={self.threat.use}: fab steps in linf, l2 and l1; give one of them")
        for name, least in (("steps", 1), ("targets", 0), ("restarts", 1), ("compact", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        refuse_draws(self)
        if self.towards is not None:
            object.__setattr__(self, "towards", classes_of(self.towards))
            if self.targets:
                raise ValueError("towards names classes, and targets counts likely ones: leave one of them out")

    @property
    def label(self) -> str:
        aimed = self.targets or self.towards is not None
        return ("fab-t" if aimed else "fab") + (f"-{self.steps}" if self.steps != 100 else "")

    def cost(self) -> float:
        """For ten classes where `targets` is 0."""
        aimed = self.targets or self.towards is not None
        run = (3 if aimed else 11) * self.steps * self.draws + 1
        return 1 + self.restarts * max(1, self.targets) * run

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] within eps, without a graph; images where none was found."""
        return self.search(network, images, targets, key, goal).found

    def search(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Standing:
        """What stands and what fell, with the points found. Raises ValueError for a goal: it raises none."""
        refuse(self, goal, "looks for the nearest point that fools and raises no goal")
        return self._search(network, images, targets, key, number(self.threat.eps))[0]

    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        standing, points = self._search(network, images, targets, key, within)
        kept = standing.fallen.view(-1, *[1] * (images.dim() - 1))
        with attacked(network, key=key):
            return measured(self.threat, network, images, targets, torch.where(kept, standing.found, points), key)

    def _search(
        self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None
    ) -> tuple[Standing, Tensor]:
        """What fell, by points as near as `within`; and the nearest points of the others, however far, [B, ...]."""
        points = images.clone()
        distance = torch.full_like(images.flatten(1)[:, :1].sum(1), torch.inf)
        with attacked(network, key=key):
            standing = Standing(network, images, targets, key, self.compact)
            aims = None
            if self.towards is not None:
                aims = aimed(self.towards, standing.chunk_key, standing.chunk_labels, standing.logits.shape[1])
                standing.choose(aims != standing.chunk_labels)
            for run, (rank, restart) in enumerate(self._runs(standing.logits.shape[1])):
                if not standing.count:
                    break
                goals = aims if rank is None else standing.likeliest(rank)
                walk = self._begin(standing, goals, standing.key.of("run").at(run) if restart else None)
                walk = self._approach(network, walk, standing, within)
                nearer = walk.distance < distance[walk.place]
                points[walk.place[nearer]] = walk.best[nearer].view(-1, *images.shape[1:])
                distance[walk.place[nearer]] = walk.distance[nearer]
                standing.pack(None)
        return standing, points

    def _runs(self, classes: int) -> Iterator[tuple[int | None, int]]:
        """(rank of the target among the clean image's logits or None, number of the restart) of every run."""
        ranks: list[int | None] = [*range(1, min(self.targets, classes - 1) + 1)] or [None]
        yield from ((rank, restart) for rank in ranks for restart in range(self.restarts))

    def _begin(self, standing: Standing, goals: Tensor | None, key: Key | None) -> _Approach:
        """The start of a run: the image, or with a key a random point at eps / 2, clipped to the box.

        goals: [N] of the chunk, the classes that it goes to.
        """
        images = standing.images
        start = images if key is None else self._start(images, key)
        return _Approach(
            images=images.flatten(1),
            labels=standing.labels,
            goals=None if goals is None else goals[standing.row],
            place=standing.row,
            point=start.flatten(1),
            best=images.flatten(1),
            distance=torch.full_like(images.flatten(1)[:, :1].sum(1), torch.inf),
        )

    def _start(self, images: Tensor, key: Key) -> Tensor:
        key = key.of("start")
        if self.threat.use == "linf":
            draw = 2 * uniform(key, images.shape, images.device, images.dtype) - 1
        else:
            draw = normal(key, images.shape, images.device, images.dtype)
        length = self.threat.distance(torch.zeros_like(draw), draw) + 1e-12
        scaled = draw * (0.5 * number(self.threat.eps) / length).view(-1, *[1] * (images.dim() - 1))
        return (images + scaled).clamp(0, 1)

    def _approach(self, network: Any, walk: _Approach, standing: Standing, within: float | None) -> _Approach:
        """One run; what it keeps of the rows that still stand."""
        shape = standing.images.shape[1:]
        for step in range(self.steps):
            with masks(network, "off", standing.key, step):
                point = self._moved(walk, *_boundary(network, walk, shape, self.threat.use, self.draws))
                with torch.no_grad():
                    logits = answer(network, point.view(-1, *shape), self.draws)
                    fooled = correct(logits, walk.labels) == 0
                    if self.towards is not None and walk.goals is not None:
                        fooled = correct(logits, walk.goals) == 1
            far = self.threat.distance(walk.images, point)
            nearer = fooled & (far < walk.distance)
            walk = replace(
                walk,
                point=torch.lerp(walk.images, point, torch.where(fooled, RETREAT, 1.0).to(point.dtype)[:, None]),
                best=torch.where(nearer[:, None], point, walk.best),
                distance=torch.where(nearer, far, walk.distance),
            )
            if within is not None:
                standing.note(fooled & (far <= within), point.view(-1, *shape))
                if standing.due(step) and step + 1 < self.steps:
                    walk = standing.pack(walk)
                    if not standing.count:
                        break
        return walk

    def _moved(self, walk: _Approach, gap: Tensor, slope: Tensor) -> Tensor:
        """x_{k+1}, [b, D], from g and its gradient at x_k."""
        both = torch.stack([walk.point, walk.images])
        gaps = torch.stack([-gap, (slope * (walk.point - walk.images)).sum(1) - gap])
        steps = onto_hyperplane(self.threat.use, both, slope, gaps)
        near, far = self.threat.distance(both.flatten(0, 1), (both + steps).flatten(0, 1)).view(2, -1).clamp(min=1e-8)
        own, other = torch.add(both, steps, alpha=OVERSHOOT)
        return torch.lerp(own, other, (near / (near + far)).clamp(max=BIAS)[:, None]).clamp_(0, 1)


@dataclass(frozen=True)
class _Approach:
    """Where a run stands, a row an image; images and points as [b, D]."""

    images: Tensor
    labels: Tensor
    goals: Tensor | None
    place: Tensor  # [b] of the chunk
    point: Tensor
    best: Tensor  # the nearest point that fools
    distance: Tensor  # [b] there; inf where there is none


def _boundary(network: Any, walk: _Approach, shape: torch.Size, norm: str, draws: int) -> tuple[Tensor, Tensor]:
    """g = z_t - z_y [b] and its gradient [b, D] at the points, for the goals t or the classes that seem the nearest."""
    point = walk.point.view(-1, *shape).requires_grad_()
    logits = answer(network, point, draws)
    own = logits.gather(1, walk.labels[:, None])
    if walk.goals is not None:
        gap = (logits.gather(1, walk.goals[:, None]) - own).squeeze(1)
        return gap.detach(), sloped(torch.autograd.grad(gap.sum(), point)[0].flatten(1))
    classes = logits.shape[1]
    for ahead in range(1, classes):  # g of the class so many after the label
        gap = (logits.gather(1, (walk.labels[:, None] + ahead) % classes) - own).squeeze(1)
        slope = sloped(torch.autograd.grad(gap.sum(), point, retain_graph=ahead + 1 < classes)[0].flatten(1))
        gap = gap.detach()
        reach = gap.abs() / (dual_norm(norm, slope) + 1e-12)
        if ahead == 1:
            nearest, least, chosen = reach, gap, slope
        closer = reach < nearest
        nearest, least = torch.where(closer, reach, nearest), torch.where(closer, gap, least)
        chosen = torch.where(closer[:, None], slope, chosen)
    return least, chosen
