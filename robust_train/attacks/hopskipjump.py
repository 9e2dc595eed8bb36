"""HopSkipJump: along the decision boundary, from the network's decisions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import masks
from robust_train.attacks.given import wide
from robust_train.attacks.nearest import Nearest, NearestAttack, measured, measuring
from robust_train.keyed import Key, normal, uniform
from robust_train.losses import correct
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

SHRINKINGS = 30  # times a jump is halved at most
FARTHER = (1e-6, 1e-5, 1e-4)  # shares of its distance by which a point that slipped over the boundary is sent back
BLOCK = 20  # directions drawn at once, at most
WIDEST = 0.1  # spread of the first estimate's queries


@attacks.register("hopskipjump")
@dataclass(frozen=True)
class HopSkipJump(NearestAttack):
    """HopSkipJump: to the boundary by bisection, along it by a gradient estimated from decisions.

        x_t = bisected(x~_t),   v_t = 1 / (B - 1) sum_b (phi_b - mean phi) u_b,   x~_{t+1} = x_t + xi unit(v_t)

    phi_b = +-1 says whether x_t + delta u_b fools; u_b: Gaussian (L2) or uniform (L-infinity) directions of Euclidean
    length 1; B = min(first sqrt(t), most). delta = ||x_t - x|| / d (0.1 at t = 1), xi = ||x_t - x|| / sqrt(t), halved
    until the point fools. Bisection along the line to the image (L2), or of the radius to which the move is clipped
    (L-infinity), to a share theta of what it began with: d^-3/2 for L2, d^-2 for L-infinity. Starts from the first of
    `tries` uniform images that fools; an image for which none does counts as failed. Chen et al. 2020 (arXiv
    1904.02144, algorithms 1 and 2). The nearest point seen is kept, where theirs keeps the last.

    Reads the network's decisions only. Costs at most tries + the queries of its estimates + steps (30 + bisections) + 5
    forwards, each query `draws`.
    """

    threat: Ball  # l2 or linf, whose norm is made small
    steps: int = 50  # estimates of the boundary's direction
    first: int = 100  # B_0: queries of the first estimate
    most: int = 10000  # queries of an estimate at most
    tries: int = 100  # uniform images to start from
    draws: int = 1  # passes that vote on a decision, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: l2, eps: 0.5}, steps: 2, first: 10}
    - {threat: {use: linf, eps: 0.1}, steps: 2, first: 10, tries: 5}
    """

    def __post_init__(self) -> None:
        if self.threat.use not in ("l2", "linf"):
            raise ValueError(f"threat={self.threat.use}: HopSkipJump's steps are those of l2 or linf; give one of them")
        for name, least in (("steps", 0), ("first", 2), ("most", 2), ("tries", 1), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    @property
    def label(self) -> str:
        return "hopskipjump"

    def cost(self) -> float:
        """For an image of 32 x 32 x 3 pixels, whose bisections are 18 or 24 queries each."""
        estimates = sum(self._queries(step) for step in range(1, self.steps + 1))
        bisections = (self.steps + 1) * self._halvings(3072)
        queries = self.tries + estimates + self.steps * SHRINKINGS + bisections + 1 + len(FARTHER)
        return queries * self.draws + 1

    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        """The nearest point on each image's walk that fools."""
        key = key.naming(images)
        points, distance = images.clone(), images.new_full((len(images),), torch.inf)
        with measuring(network, key), torch.no_grad():
            oracle = _Oracle(network, targets, key.of("noise"), self.draws)
            fools, every = oracle.fools, torch.arange(len(images), device=images.device)
            rows, walking = self._started(images, key, fools)
            oracle.stage("clean")
            wrong = fools(images, every)
            rows, walking = rows[~wrong[rows]], walking[~wrong[rows]]
            for step in range(1, self.steps + 2):
                oracle.stage("bisection", step)
                if len(rows):
                    walking = self._bisected(images[rows], walking, partial(fools, rows=rows))
                    now = self.threat.distance(images[rows], walking)
                    nearer = now < distance[rows]
                    points[rows] = torch.where(wide(nearer, walking), walking, points[rows])
                    distance[rows] = torch.where(nearer, now, distance[rows])
                    far = distance[rows] > (-1.0 if within is None else within)
                    rows, walking, now = rows[far], walking[far], now[far]
                if not len(rows) or step > self.steps:
                    break
                jump = key[rows].of("directions").at(step)
                oracle.stage("jump", step)
                walking = self._jumped(walking, now, jump, partial(fools, rows=rows), step)
            oracle.stage("end")
            for share in FARTHER:  # what a bisection ends with may stop to fool by the rounding of another batch size
                slipped = distance.isfinite() & ~fools(points, every)
                farther = (points + share * (points - images)).clamp(0, 1)
                points = torch.where(wide(slipped, points), farther, points)
            return measured(self.threat, network, images, targets, points, key)

    def _started(self, images: Tensor, key: Key, fools: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The images that a uniform image fools [b], and the first such of each."""
        starts, left = torch.zeros_like(images), torch.arange(len(images), device=images.device)
        for attempt in range(self.tries):
            if not len(left):
                break
            drawn = uniform(key[left].of("start").at(attempt), images[left].shape, images.device, images.dtype)
            fooled = fools(drawn, left)
            starts[left[fooled]] = drawn[fooled]
            left = left[~fooled]
        started = torch.ones(len(images), dtype=torch.bool, device=images.device)
        started[left] = False
        rows = started.nonzero().flatten()
        return rows, starts[rows]

    def _bisected(self, images: Tensor, fooling: Tensor, fools: Callable[[Tensor], Tensor]) -> Tensor:
        """Points that fool and are within theta of the boundary, between the images and `fooling` [b, ...]."""
        high = torch.ones_like(fooling.flatten(1)[:, 0])
        low, whole = torch.zeros_like(high), self.threat.distance(images, fooling)
        for _ in range(self._halvings(images[:1].numel())):
            middle = (low + high) / 2
            fooled = fools(self._between(images, fooling, middle, whole))
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        nearest = self._between(images, fooling, high, whole)
        return torch.where(wide(high < 1, fooling), nearest, fooling)

    def _between(self, images: Tensor, fooling: Tensor, share: Tensor, whole: Tensor) -> Tensor:
        """L2: that share of the way; L-infinity: the move clipped to that share of its length [b]."""
        if self.threat.use == "l2":
            return torch.lerp(images, fooling, wide(share, images)).clamp(0, 1)
        reach = wide(share * whole, images)
        return (images + (fooling - images).clamp(-reach, reach)).clamp(0, 1)

    def _jumped(
        self, points: Tensor, distance: Tensor, key: Key, fools: Callable[[Tensor], Tensor], step: int
    ) -> Tensor:
        """Points beyond the boundary, further along it; a row whose jump shrank to nothing stays."""
        spread = torch.full_like(distance, WIDEST) if step == 1 else distance / points[:1].numel()
        directions = self._directions(points, key, self._queries(step))
        unit = self.threat.unit(outward(points, spread, directions, fools))
        size, landed = distance / math.sqrt(step), torch.zeros_like(distance, dtype=torch.bool)
        found = points
        for _ in range(SHRINKINGS):
            tried = (points + wide(size, points) * unit).clamp(0, 1)
            good = fools(tried) & ~landed
            found, landed = torch.where(wide(good, points), tried, found), landed | good
            if landed.all():
                break
            size = size / 2
        return found

    def _directions(self, points: Tensor, key: Key, count: int) -> Iterator[Tensor]:
        """So many directions [b, ...], each image's by its row of the key, in blocks whose size its pixels decide."""
        block = max(1, min(BLOCK, 2**16 // max(1, points[:1].numel())))
        for first in range(0, count, block):
            shape = (len(points), block, *points.shape[1:])
            if self.threat.use == "l2":
                drawn = normal(key.at(first), shape, points.device, points.dtype)
            else:
                drawn = 2 * uniform(key.at(first), shape, points.device, points.dtype) - 1
            yield from drawn[:, : count - first].unbind(1)

    def _queries(self, step: int) -> int:
        return min(int(self.first * math.sqrt(step)), self.most)

    def _halvings(self, pixels: int) -> int:
        return math.ceil(math.log2(pixels) * (1.5 if self.threat.use == "l2" else 2)) if pixels > 1 else 1


class _Oracle:
    """The network's decisions. Noise goes by the row and by the number of its query in a stage, whoever else asks."""

    def __init__(self, network: Any, targets: Tensor, key: Key, draws: int) -> None:
        self.network, self.targets, self.key, self.draws = network, targets, key, draws
        self.stage("start")

    def stage(self, name: str, step: int = 0) -> None:
        """What comes: its queries are counted anew, since images leave a stage after unlike numbers of them."""
        self.own, self.asked = self.key.of(name).at(step), 0

    def fools(self, at: Tensor, rows: Tensor) -> Tensor:
        """[b] bool: whether points of these images fool, in most of the draws."""
        with masks(self.network, "off", self.own[rows], self.asked):
            self.asked += 1
            votes = [correct(self.network(at), self.targets[rows]) for _ in range(self.draws)]
            return torch.stack(votes).mean(0) < 0.5


def outward(points: Tensor, spread: Tensor, directions: Iterable[Tensor], fools: Callable[[Tensor], Tensor]) -> Tensor:
    """v = 1 / (B - 1) sum_b (phi_b - mean phi) u_b, [b, ...]: from the boundary towards what fools.

    directions: B tensors [b, ...], brought to Euclidean length 1; each query is clipped to [0, 1] and its direction is
    what that left. Where all phi agree they are taken as they are. spread [b].
    """
    weighted, plain, total, count = torch.zeros_like(points), torch.zeros_like(points), torch.zeros_like(spread), 0
    reach = wide(spread, points)
    for direction in directions:
        length = direction.flatten(1).norm(dim=1)
        asked = (points + reach * direction / wide(length, points)).clamp(0, 1)
        real = (asked - points) / reach
        phi = torch.where(fools(asked), 1.0, -1.0).to(points.dtype)
        weighted, plain, total = weighted + wide(phi, points) * real, plain + real, total + phi
        count += 1
    mean = total / count
    baseline = torch.where(mean.abs() == 1, 0, mean)
    return (weighted - wide(baseline, points) * plain) / max(1, count - 1)
