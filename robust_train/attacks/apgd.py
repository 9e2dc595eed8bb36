"""Auto-PGD: projected gradient ascent with momentum that halves its own step, without a step size to choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, Norm, attacked
from robust_train.attacks.given import Towards, aimed, classes_of, wide
from robust_train.attacks.sight import Sight
from robust_train.attacks.standing import Standing
from robust_train.kernels.apgd_step import Norm as FusedNorm
from robust_train.kernels.apgd_step import apgd_seen, apgd_step
from robust_train.keyed import Key, normal, uniform
from robust_train.losses import correct, cross_entropy, dlr, targeted_dlr
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball
from robust_train.threats.l1 import L1
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf

MOMENTUM = 0.75  # alpha: share of the new step, the rest follows the last move
RHO = 0.75  # share of the steps since the last checkpoint that must raise the loss
FUSED: dict[type, FusedNorm] = {Linf: "linf", L2: "l2"}  # balls whose step is a kernel on a GPU
WIDE = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # L1: radii in eps, and the share of the steps spent at each


@attacks.register("apgd")
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD: ascent with momentum whose step is halved where the loss no longer rises.

        u = P(x_k + eta d(g)),    x_{k+1} = P(x_k + a (u - x_k) + (1 - a) (x_k - x_{k-1})),    a = 1, then 0.75

    d(g) = sign g or g / ||g||_2; eta = 2 eps at first. At checkpoints, where fewer than rho of the steps since the last
    raised the loss, or neither eta nor the best loss has changed since, eta is halved and the search goes on from the
    best point. Croce and Hein 2020 (arXiv 2003.01690, algorithm 1). For L1 (2021, arXiv 2103.01208): a step of signs
    among the k largest gradients, k 2/3 of the pixels that the best point moves (`top` of all at first), no momentum,
    from radii 3 eps and 2 eps down to eps (`widened`, to judge; to train at eps alone), each from the best point of the
    last, for 0.3, 0.3 and 0.4 of the steps, the first two rounded up; eta = eps at first.

    Untargeted it raises the cross-entropy or the DLR; with `targets` = T the targeted DLR towards each of the T
    likeliest wrong classes of the clean image in turn. A goal given by the caller is raised by untargeted runs.
    keep "fooled": an attack to judge by; images that fell are set aside. keep "best": the point of the largest loss,
    for training; of fixed size, without a read of the device. As in the authors' code the first step's loss is compared
    with 0, not with the start's.

    Costs (2 steps + 1) eot forwards for keep "best"; else at most 2 + runs ((2 steps + 1) eot + 1), with runs =
    restarts max(1, targets) and for L1 two eot more a run, and less the sooner images fall.
    """

    threat: Ball  # where it searches: linf, l2 or l1
    steps: int  # of each run: 100 to judge, 2 or so to train
    loss: Literal["ce", "dlr"] = "ce"  # what an untargeted run raises
    targets: int = 0  # 0: away from the label; else so many classes, one run each, by the targeted DLR
    towards: Towards = None  # in its place: a class, or one for each image, by the targeted form of `loss`
    restarts: int = 1  # runs from independent starts, for each target
    start: Literal["random", "zero"] = "random"  # a random point of the ball's face, or the image
    top: float = 0.2  # L1: share of the pixels that the first steps move; 0.05 to train
    widened: bool = True  # L1, to judge: from 3 and 2 eps down to eps; AutoAttack's plus and rand do without
    eot: int = 1  # gradients averaged a step, over the network's own randomness
    keep: Literal["fooled", "best"] = "fooled"  # what fools, images that fell set aside; or the largest loss
    compact: int = 10  # steps between two packings of the images that still stand
    norm: Norm = "running"  # BatchNorm in the attack: running statistics, or the groups' own (none recorded)
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the steps, or redrawn

    sets_aside = True
    usual_steps = 100
    examples = """
    - {threat: {use: linf, eps: 0.1}, steps: 3, keep: best}
    - {threat: {use: l2, eps: 0.5}, steps: 3, keep: best}
    - {threat: {use: l1, eps: 1.5, top: 4}, steps: 3, keep: best}
    - {threat: {use: linf, eps: 0.1}, steps: 3, loss: dlr, start: zero, eot: 2, keep: best, norm: group, drops: redrawn}
    - {threat: {use: linf, eps: 0.1}, steps: 4, restarts: 2, compact: 2}
    - {threat: {use: l2, eps: 0.5}, steps: 4, restarts: 2, compact: 2}
    - {threat: {use: l1, eps: 1.5, top: 4}, steps: 4, restarts: 2, compact: 2}
    """

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("targets", 0), ("restarts", 1), ("eot", 1), ("compact", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.top <= 1:
            raise ValueError(f"top={self.top:g} is not in (0, 1]: it is the share of the pixels that a step moves")
        if self.towards is not None:
            object.__setattr__(self, "towards", classes_of(self.towards))
            if self.targets:
                raise ValueError("towards names classes, and targets counts likely ones: leave one of them out")
        if self.keep == "best" and (self.targets or self.restarts > 1 or self.towards is not None):
            raise ValueError("keep=best is one untargeted run, for training: use keep=fooled with targets and restarts")

    @property
    def label(self) -> str:
        kind = "t" if self.targets else self.loss if self.towards is None else f"{self.loss}-t"
        return f"apgd-{kind}" + (f"-{self.steps}" if self.steps != 100 else "")

    def cost(self) -> float:
        if self.keep == "best":
            return (2 * self.steps + 1) * self.eot
        looks = 2 * self.steps + len(self._phases(True))
        return 2 + self.restarts * max(1, self.targets) * (looks * self.eot + 1)

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        if self.keep == "fooled":
            return self.search(network, images, targets, key, goal).found
        key = key.naming(images)
        with attacked(network, self.norm, key):
            see = Sight(network, images, targets, key, goal or self._own, self.drops, self.eot)
            return self._ascend(see, images, see.every, key.of("run").at(0), None)

    def search(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Standing:
        """What stands and what fell, with the points found."""
        key = key.naming(images)
        with attacked(network, self.norm, key):
            standing = Standing(network, images, targets, key, self.compact)
            own, see, landing = goal or self._own, None, None
            if self.towards is not None and goal is None:
                labels, classes = standing.chunk_labels, standing.logits.shape[1]
                aims = aimed(self.towards, key, labels, classes)
                standing.choose(aims != labels)
                landing = aims
                own = Raising(_towards if self.loss == "dlr" else _lowered, torch.stack([labels, aims], 1))
            for run, rank in self._runs(standing.logits.shape[1]):
                if not standing.count:
                    break
                if rank is not None:
                    aims = torch.stack([standing.chunk_labels, standing.likeliest(rank)], 1)
                    see = Sight(network, images, targets, key, Raising(_towards, aims), self.drops, self.eot)
                elif see is None:
                    see = Sight(network, images, targets, key, own, self.drops, self.eot)
                began = key.of("run").at(run)
                standing.close(self._ascend(see, standing.images, standing.row, began, standing, landing))
        return standing

    @property
    def _own(self) -> Goal:
        return Raising(dlr if self.loss == "dlr" else cross_entropy)

    def _runs(self, classes: int) -> Iterator[tuple[int, int | None]]:
        """(number, rank of the target among the clean image's logits or None) of every run."""
        if (self.targets or (self.towards is not None and self.loss == "dlr")) and classes < 4:
            raise ValueError(f"the targeted DLR needs four classes, and the network has {classes}: use targets=0")
        if self.loss == "dlr" and classes < 3:
            raise ValueError(f"the DLR needs three classes, and the network has {classes}: use loss=ce")
        ranks: list[int | None] = [*range(1, min(self.targets, classes - 1) + 1)] or [None]
        yield from enumerate(rank for rank in ranks for _ in range(self.restarts))

    def _ascend(
        self,
        see: Sight,
        images: Tensor,
        row: Tensor,
        key: Key,
        standing: Standing | None,
        landing: Tensor | None = None,
    ) -> Tensor:
        """The best point [b, ...] of one run, of the rows that are left.

        landing: [N] of the chunk, the classes on which a point fools; None: on any but the label.
        """
        phases = self._phases(standing is not None)
        widest = replace(self.threat, eps=phases[0][0] * number(self.threat.eps))  # type: ignore[type-var]
        point = images if self.start == "zero" else _start(widest, images, key[row].of("start"))
        for factor, steps in phases:
            if standing is not None and not standing.count:
                continue
            ball = replace(self.threat, eps=factor * number(self.threat.eps))  # type: ignore[type-var]
            last = factor == 1.0  # only there a point counts
            top = self.top if factor == phases[0][0] else None
            walk = _Walk(ball, steps, top, images, row, landing)
            point = walk.run(see, point, key, standing if last else None)
        return point

    def _phases(self, judges: bool) -> list[tuple[float, int]]:
        """(radius in eps, steps) of a run, in order. A step at least is left for eps itself, where points count."""
        if not (judges and self.widened and isinstance(self.threat, L1)):
            return [(1.0, self.steps)]
        found: list[tuple[float, int]] = []
        left = self.steps
        for factor, share in WIDE[:-1]:
            steps = min(math.ceil(share * self.steps), left - 1)
            found, left = [*found, (factor, steps)], left - steps
        return [phase for phase in [*found, (1.0, left)] if phase[1]]


def checkpoints(steps: int, sparse: bool = False) -> tuple[int, ...]:
    """After how many of so many steps the search is looked at: 22, 41, 57, 70, ... of 100.

    The first after 0.22 of them, then each distance is 0.03 of them shorter than the last, down to 0.06; sparse (L1):
    every 0.04 of them.
    """
    wait, least, shorter = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    if sparse:
        wait = least = max(int(0.04 * steps), 1)
    found, mark = [], wait
    while mark <= steps:
        found.append(mark)
        wait = max(wait - shorter, least)
        mark += wait
    return tuple(found)


def _towards(logits: Tensor, aims: Tensor) -> Tensor:
    """The targeted DLR for labels and classes [b, 2]."""
    return targeted_dlr(logits, *aims.unbind(1))


def _lowered(logits: Tensor, aims: Tensor) -> Tensor:
    """Minus the cross-entropy of the classes that are aimed at, for labels and classes [b, 2]."""
    return -cross_entropy(logits, aims[:, 1])


@dataclass(frozen=True)
class _Climb:
    """Where a run stands, a row an image."""

    images: Tensor
    row: Tensor  # of the chunk
    point: Tensor
    before: Tensor
    slope: Tensor
    loss: Tensor  # [b] of the last step, which the next is compared with
    best: Tensor
    best_slope: Tensor
    best_loss: Tensor
    size: Tensor  # [b, 1, ...] eta
    rises: Tensor  # [b] steps since the last checkpoint that raised the loss
    reduced: Tensor  # [b] bool: eta was halved at the last checkpoint
    then: Tensor  # [b] the best loss there
    top: Tensor  # [b, 1] L1: share of the pixels that a step moves
    sparse: Tensor  # [b] L1: pixels moved by the best point at the last checkpoint


@dataclass(frozen=True)
class _Walk:
    """One run at one radius."""

    ball: Ball
    steps: int
    top: float | None  # L1: share of the pixels that the first steps move; None: as many as the start's sparsity says
    images: Tensor
    row: Tensor  # [b] which of the images that the goal was made for
    landing: Tensor | None = None  # [N] the classes on which a point fools; None: on any but the label

    def run(self, see: Sight, point: Tensor, key: Key, standing: Standing | None) -> Tensor:
        """The point of the largest loss, [b, ...]; with `standing`, of the rows that still stand."""
        point = self.images + self.ball.project(self.images, point - self.images)
        loss, slope, logits = see.slope(point, key[self.row], 0, self.row)
        climb = self._begin(point, loss, slope)
        if standing is not None:
            standing.note(self._fooled(logits, standing), point)
        sparse = isinstance(self.ball, L1)
        checks, before = checkpoints(self.steps, sparse), 0
        for step in range(self.steps):
            climb = _stepped(climb, self.ball, step)
            ends = step + 1 == self.steps  # no step follows: a forward without a gradient is enough
            where = key[climb.row]
            if ends:
                (loss, logits), slope = see.look(climb.point, where, step + 1, climb.row), climb.slope
            else:
                loss, slope, logits = see.slope(climb.point, where, step + 1, climb.row)
            climb = _seen(climb, loss, slope)
            if standing is not None:
                standing.note(self._fooled(logits, standing), climb.point)
            if step + 1 in checks:
                climb = _sparser(climb, self.ball) if sparse else _checked(climb, step + 1 - before)
                before = step + 1
            if standing is not None and standing.due(step) and not ends:
                climb = standing.pack(climb)
                if not standing.count:
                    break
        return climb.best

    def _fooled(self, logits: Tensor, standing: Standing) -> Tensor:
        """[b] whether the packed rows' points do what they are made for."""
        if self.landing is None:
            return correct(logits, standing.labels) == 0
        return correct(logits, self.landing[standing.row]) == 1

    def _begin(self, point: Tensor, loss: Tensor, slope: Tensor) -> _Climb:
        size = (1 if isinstance(self.ball, L1) else 2) * number(self.ball.eps)
        moved = torch.full_like(loss, point[:1].numel()) if self.top is not None else _moved(point, self.images)
        return _Climb(
            self.images, self.row, point, point, slope,
            loss=torch.zeros_like(loss),  # the reference compares the first step's loss with 0
            best=point, best_slope=slope, best_loss=loss,
            size=wide(torch.full_like(loss, size), point),
            rises=torch.zeros_like(loss), reduced=torch.ones_like(loss, dtype=torch.bool), then=loss,
            top=_share(moved, point) if self.top is None else torch.full_like(loss, self.top)[:, None],
            sparse=moved,
        )  # fmt: skip


def _stepped(climb: _Climb, ball: Ball, step: int) -> _Climb:
    """One move of the points."""
    images, point = climb.images, climb.point
    if isinstance(ball, L1):
        return replace(climb, point=images + ball.project(images, point - images + _sparse(climb)))
    share, norm = MOMENTUM if step else 1.0, FUSED.get(type(ball))
    moved = apgd_step(images, point, climb.before, climb.slope, climb.size, share, ball, norm, number(ball.eps))
    return replace(climb, before=point, point=moved)


def _sparse(climb: _Climb) -> Tensor:
    """L1: the size spread over the signs of the largest gradients, a share `top` of the pixels."""
    slope = climb.slope.flatten(1)
    count = slope.shape[1]
    order = slope.abs().sort(1).values
    least = order.gather(1, ((1 - climb.top) * count).clamp(0, count - 1).long())
    sign = torch.where(slope.abs() >= least, slope.sign(), 0)
    return climb.size * (sign / (sign.abs().sum(1, keepdim=True) + 1e-10)).view_as(climb.slope)


def _seen(climb: _Climb, loss: Tensor, slope: Tensor) -> _Climb:
    """What the new points' losses change."""
    rises, best, best_slope, best_loss = apgd_seen(
        climb.point, slope, loss, climb.loss, climb.rises, climb.best, climb.best_slope, climb.best_loss
    )
    return replace(climb, slope=slope, loss=loss, rises=rises, best=best, best_slope=best_slope, best_loss=best_loss)


def _checked(climb: _Climb, steps: int) -> _Climb:
    """A checkpoint after `steps` steps: halve eta and return to the best point where the loss stands still."""
    stuck = climb.rises <= RHO * steps
    idle = ~climb.reduced & (climb.then >= climb.best_loss)
    halve = stuck | idle
    return replace(
        _returned(climb, halve),
        size=torch.where(wide(halve, climb.size), climb.size / 2, climb.size),
        rises=torch.zeros_like(climb.rises),
        reduced=halve,
        then=climb.best_loss,
    )


def _sparser(climb: _Climb, ball: Ball) -> _Climb:
    """L1's checkpoint: moves as sparse as the best point; where it grew sparser eta is eps again, else it shrinks."""
    eps = number(ball.eps)
    now = _moved(climb.best, climb.images)
    again = now / climb.sparse < 0.95
    size = torch.where(wide(again, climb.size), torch.full_like(climb.size, eps), climb.size / 1.5)
    return replace(_returned(climb, again), size=size.clamp(eps / 10, eps), top=_share(now, climb.best), sparse=now)


def _moved(point: Tensor, images: Tensor) -> Tensor:
    """[b] how many pixels of each point are not the image's."""
    return (point != images).flatten(1).sum(1).to(point.dtype)


def _share(moved: Tensor, like: Tensor) -> Tensor:
    """[b, 1] L1: the share of the pixels that a step moves, where the perturbation holds so many."""
    return (moved / like[:1].numel() / 1.5)[:, None]


def _returned(climb: _Climb, rows: Tensor) -> _Climb:
    """Those rows at their best point again, with the gradient there."""
    chosen = wide(rows, climb.point)
    return replace(
        climb,
        point=torch.where(chosen, climb.best, climb.point),
        slope=torch.where(chosen, climb.best_slope, climb.slope),
    )


def _start(ball: Ball, images: Tensor, key: Key) -> Tensor:
    """A random point on the ball's face, clipped to the box. L1: a Gaussian, projected."""
    eps = number(ball.eps)
    if ball.use == "linf":
        draw = 2 * uniform(key, images.shape, images.device, images.dtype) - 1
        longest = draw.flatten(1).abs().amax(1) if draw.numel() else draw.flatten(1).sum(1)
        return images + ball.project(images, eps * draw / (wide(longest, images) + 1e-12))
    draw = normal(key, images.shape, images.device, images.dtype)
    if ball.use == "l2":
        draw = eps * draw / (wide(draw.flatten(1).norm(dim=1), images) + 1e-12)
    return images + ball.project(images, draw)
