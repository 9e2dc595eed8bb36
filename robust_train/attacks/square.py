"""Square: random search with square windows, from the network's answers alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, attacked
from robust_train.attacks.sight import Sight
from robust_train.attacks.standing import Standing
from robust_train.keyed import Key, bits
from robust_train.losses import correct, overtaking
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the windows' area is halved
BLOCK = 20  # queries whose windows and signs are drawn at once
TINY = 1e-12  # beside lengths that are divided by


@attacks.register("square")
@dataclass(frozen=True)
class Square(Attack):
    """Square: random search; a square window of the perturbation is replaced, and kept where the margin falls.

        x' = clip(x + z', 0, 1),   kept where z_y - max_{j != y} z_j falls or the network is fooled
        L-infinity: z' = eps r in an s x s window, elsewhere z;   start: vertical stripes of +-eps
        L2, L1:     z' = 0 in a window W2,  m u / ||u|| in a window W1,  u = r h + z|W1 / ||z|W1||,  a channel alone;
                    then z' is scaled to length eps (L2), or projected on ball and box (L1);   start: a grid of r h

    r = +-1 a channel; h: two halves of opposite sign, each falling off from its middle, upright or lying. The squared
    mass m^2 = max(0, eps^2 - ||z||^2) / C + ||z|(W1 u W2)||^2 keeps the length; L1: m = max(0, eps - ||z||) + C ||z|(W1
    u W2)||, whose factor C is the authors' code's. s^2 = p H W, at least 3 x 3 and odd but for L-infinity; p is halved
    after queries 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 however many there are, as AutoAttack has it.
    Andriushchenko et al. 2020 (arXiv 1912.00049, algorithms 1 to 3); L1: Croce and Hein 2021 (arXiv 2103.01208).

    As in the authors' code no window smaller than the image reaches its last row or column; with `edges` windows lie
    anywhere, as in the papers, and fool a little more. Different from the code on purpose: each image has windows and
    signs of its own where theirs share one draw a batch, so that no result depends on who else is in it; a tie of the
    two largest logits is no success; images of any sides.

    Reads no gradient. Costs at most (queries + 1) draws + 2 forwards: the images, the start, the queries, the last
    judgement.
    """

    threat: Ball  # where it searches: linf, l2 or l1
    queries: int  # windows tried after the start: 5,000 to judge
    p: float = 0.8  # share of the image that a window covers at first
    edges: bool = False  # windows reach the last row and column too; AutoAttack's never do
    compact: int = 20  # queries between two packings of the images that still stand
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the queries, or redrawn
    draws: int = 1  # looks averaged a query, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: linf, eps: 0.1}, queries: 25, compact: 6}
    - {threat: {use: l2, eps: 0.5}, queries: 25, compact: 6}
    - {threat: {use: l1, eps: 1.5, top: 4}, queries: 25, compact: 6}
    - {threat: {use: linf, eps: 0.1}, queries: 3, drops: redrawn}
    """

    def __post_init__(self) -> None:
        if self.threat.use not in ("linf", "l2", "l1"):
            raise ValueError(f"threat={self.threat.use}: square has windows for linf, l2 and l1; give one of them")
        if self.queries < 0:
            raise ValueError(f"queries={self.queries} must not be negative: it counts the windows tried")
        if not 0 < self.p <= 1:
            raise ValueError(f"p={self.p:g} is not in (0, 1]: it is the share of the image in the first windows")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1: it counts the looks averaged a query")
        if self.compact < 1:
            raise ValueError(f"compact={self.compact} must be at least 1: it counts queries between two packings")

    @property
    def label(self) -> str:
        return "square" + (f"-{self.queries}" if self.queries != 5000 else "")

    def cost(self) -> float:
        return (self.queries + 1) * self.draws + 2

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, C, H, W] in [0, 1], inside the threat model, without a graph.

        goal: raised in place of minus the margin.
        """
        return self.search(network, images, targets, key, goal).found

    def search(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Standing:
        """What stands and what fell, with the points found; `steps` counts queries, the start's among them."""
        with attacked(network, key=key), torch.no_grad():
            standing = Standing(network, images, targets, key, self.compact)
            if standing.count:
                self._search(
                    standing,
                    Sight(
                        network,
                        images,
                        targets,
                        standing.chunk_key,
                        goal or Raising(overtaking),
                        self.drops,
                        self.draws,
                    ),
                )
        return standing

    def side(self, query: int, height: int, width: int) -> int:
        """The side of the windows at a query, from 0, in pixels."""
        area = self.p / 2 ** bisect_left(HALVED, query) * height * width
        side = round(math.sqrt(area))
        side = max(side, 1) if self.threat.use == "linf" else max(side, 3) | 1  # odd: a pattern has a middle
        return min(side, height, width)

    def _search(self, standing: Standing, see: Sight) -> None:
        """Try every window; leave the points of the smallest margins with `standing`."""
        start = _stripes if self.threat.use == "linf" else _grid
        points = start(self.threat, standing.images, standing.key.of("start"))
        raised, fooled = _judged(standing, see, points, 0)
        standing.note(fooled, points)
        descent, windows = _Descent(points, raised, *_drawn(standing, 0)), Windows(points, 1, self.edges)
        for query in range(self.queries):
            side, turn = self.side(query, *points.shape[2:]), query % BLOCK
            if side != windows.side:
                windows = Windows(points, side, self.edges)
            if query and not turn:
                places, signs = _drawn(standing, query // BLOCK)
                descent = replace(descent, places=places, signs=signs)
            move = _recoloured if self.threat.use == "linf" else _reshaped
            tried = move(self.threat, standing.images, descent, windows, turn)
            raised, fooled = _judged(standing, see, tried, query + 1)
            better = fooled | (raised > descent.raised)
            descent = replace(
                descent,
                points=torch.where(better[:, None, None, None], tried, descent.points),
                raised=torch.where(better, raised, descent.raised),
            )
            standing.note(fooled, tried)
            if standing.due(query) and query + 1 < self.queries:
                descent = standing.pack(descent)
                if not standing.count:
                    return
        standing.close(descent.points)


def _judged(standing: Standing, see: Sight, points: Tensor, query: int) -> tuple[Tensor, Tensor]:
    """[b] what is raised, and whether the points fool."""
    raised, logits = see.look(points, standing.key, query, standing.row)
    return raised, correct(logits, standing.labels) == 0


@dataclass(frozen=True)
class _Descent:
    """Where the search stands, a row an image."""

    points: Tensor  # [b, C, H, W] the best
    raised: Tensor  # [b] there
    places: Tensor  # [b, BLOCK, 2, 2] of two windows a query, row and column: 16 bits each
    signs: Tensor  # [b, BLOCK, 1 + C] of +-1: upright or lying, and each channel's


def _drawn(standing: Standing, block: int) -> tuple[Tensor, Tensor]:
    """The draws of the next BLOCK queries for the packed images."""
    count, channels = standing.images.shape[:2]
    words = bits(standing.key.of("windows").at(block), (count, BLOCK, 3 + channels), standing.images.device)
    places = torch.stack([words[:, :, :2] >> 16, words[:, :, :2] & 0xFFFF], dim=3)
    return places, _signs(words[:, :, 2:], standing.images)


def _signs(words: Tensor, like: Tensor) -> Tensor:
    """+1 and -1 by the leading bits of 32-bit words."""
    return ((words >> 31) * 2 - 1).to(like.dtype)


class Windows:
    """Square windows of one side in images such as some points [b, C, H, W], one place an image."""

    def __init__(self, points: Tensor, side: int, edges: bool = False) -> None:
        height, width = points.shape[2:]
        self.side, self.width = side, width
        within = torch.arange(side, device=points.device)
        self.offsets = (within[:, None] * width + within).flatten()
        # the authors' code draws corners below height - side: one fewer than there are
        rooms = [max(length - side + edges, 1) for length in (height, width)]
        self.rooms = torch.tensor(rooms).to(points.device, non_blocking=True)
        self.patterns: dict[float, Tensor] = {}

    def at(self, places: Tensor, channels: int) -> Tensor:
        """[b, C, side^2] pixels in [H W], for places [b, 2] of 16 bits: corners alike, to H / 2^16."""
        row, column = (places * self.rooms >> 16).unbind(1)
        pixels = (row * self.width + column)[:, None, None] + self.offsets
        return pixels.expand(-1, channels, -1)

    def pattern(self, power: int, like: Tensor) -> Tensor:
        """[2, side^2] the pattern h upright and lying, of length 1 in the norm `power`."""
        if power not in self.patterns:
            upright = halves(self.side, power).to(like)
            self.patterns[power] = torch.stack([upright.flatten(), upright.T.flatten()])
        return self.patterns[power]


def halves(side: int, power: int) -> Tensor:
    """h [side, side] in float64: +e over -e, e of length 1 in the norm `power` (2 or 1), and h scaled to it too.

        e(d) = sum_{k=d}^{n-1} (k + 1)^(-4 / power),    n = max(height, side) // 2 + 1 of the half

    at Chebyshev distance d from the half's middle: the paper's eq. 2 for L2; fourth powers for L1 as in its code.
    """
    h = torch.zeros(side, side, dtype=torch.float64)
    for rows, sign in ((slice(0, side // 2), 1), (slice(side // 2, side), -1)):
        part = h[rows]
        if part.numel():
            down = (torch.arange(len(part)) - len(part) // 2).abs()
            across = (torch.arange(side) - side // 2).abs()
            far = torch.maximum(down[:, None], across)
            most = max(len(part), side) // 2 + 1
            terms = (torch.arange(most, dtype=torch.float64) + 1) ** (-4 / power)
            hill = terms.flip(0).cumsum(0).flip(0)[far]
            part.copy_(sign * hill / hill.norm(p=power))
    return h / h.norm(p=power)


def _stripes(ball: Ball, images: Tensor, key: Key) -> Tensor:
    """L-infinity: each column of each channel by +eps or -eps."""
    count, channels, _, width = images.shape
    sign = _signs(bits(key, (count, channels, 1, width), images.device), images)
    return (images + number(ball.eps) * sign).clamp(0, 1)


def _grid(ball: Ball, images: Tensor, key: Key) -> Tensor:
    """L2 and L1: the pattern on a grid of cells of a fifth of the height, each channel of each cell by +1 or -1."""
    count, channels, height, width = images.shape
    side = max(1, min(height // 5, width))
    border = (height - 5 * side) // 2 if height >= 5 else 0
    rows, columns = (torch.arange(length, device=images.device) - border for length in (height, width))
    cells = (height // side + 1, width // side + 1)
    words = bits(key, (count, 1 + channels, *cells), images.device)
    upright = halves(side, _power(ball)).to(images)
    patterns = torch.stack([upright, upright.T])
    down, across = (rows // side).clamp(min=0)[:, None], (columns // side).clamp(min=0)
    turned = (words[:, 0] >> 31)[:, down, across]  # [b, H, W]
    z = (
        patterns[turned, (rows % side)[:, None], columns % side][:, None]
        * _signs(words[:, 1:], images)[:, :, down, across]
    )
    tall, broad = ((at >= 0) & (at // side < length // side) for at, length in ((rows, height), (columns, width)))
    return _placed(ball, images, z * (tall[:, None] & broad))


def _power(ball: Ball) -> int:
    return 2 if ball.use == "l2" else 1


def _placed(ball: Ball, images: Tensor, z: Tensor) -> Tensor:
    """Points for perturbations of any length: L2 scaled to eps and clipped, L1 projected on ball and box."""
    if ball.use == "l1":
        return (images + ball.project(images, z)).clamp(0, 1)
    scale = number(ball.eps) / (z.flatten(1).norm(dim=1) + TINY)
    return torch.addcmul(images, z, scale[:, None, None, None]).clamp_(0, 1)


def _recoloured(ball: Ball, images: Tensor, descent: _Descent, windows: Windows, turn: int) -> Tensor:
    """L-infinity: the points with +eps or -eps in one window a channel.

    The paper adds 2 eps r there and projects; whatever was there before, that is eps r.
    """
    pixels = windows.at(descent.places[:, turn, 0], images.shape[1])
    sign = descent.signs[:, turn, 1:, None]
    colour = torch.add(images.flatten(2).gather(2, pixels), sign, alpha=number(ball.eps)).clamp_(0, 1)
    return descent.points.flatten(2).scatter(2, pixels, colour).view_as(images)


def _reshaped(ball: Ball, images: Tensor, descent: _Descent, windows: Windows, turn: int) -> Tensor:
    """L2 and L1: the points with one window's perturbation moved into another, added to the pattern there."""
    power, eps, channels = _power(ball), number(ball.eps), images.shape[1]
    into, out = (windows.at(place, channels) for place in descent.places[:, turn].unbind(1))
    z = (descent.points - images).flatten(2)
    length = z.flatten(1).norm(p=power, dim=1)[:, None, None]
    old = z.gather(2, into)
    z.scatter_(2, into, 0.0)
    rest = z.gather(2, out)  # of the second window alone
    z.scatter_(2, out, 0.0)
    own, other = (part.norm(p=power, dim=2, keepdim=True) for part in (old, rest))
    if power == 2:
        mass = ((eps**2 - length.square()).clamp(min=0) / channels + own.square() + other.square()).sqrt()
    else:
        mass = (eps - length).clamp(min=0) + channels * (own + other)
    lying, signs = (descent.signs[:, turn, 0] > 0).long(), descent.signs[:, turn, 1:, None]
    new = signs * windows.pattern(power, images)[lying][:, None] + old / (own + TINY)
    z.scatter_(2, into, new * (mass / (new.norm(p=power, dim=2, keepdim=True) + TINY)))
    return _placed(ball, images, z.view_as(images))
