"""One pixel: differential evolution over the places and colours of a few pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import Drops, attacked
from robust_train.attacks.sight import Sight
from robust_train.attacks.standing import Standing
from robust_train.keyed import Key, bits, normal, uniform
from robust_train.losses import correct, overtaking
from robust_train.nouns import Attack, Goal, Raising, number
from robust_train.read.registry import attacks
from robust_train.threats.pixels import L0

WEIGHT = 0.5  # F: how much of the difference of two candidates is added to a third


@attacks.register("one-pixel")
@dataclass(frozen=True)
class OnePixel(Attack):
    """One pixel: differential evolution over places and colours of threat.eps pixels.

        c_i' = c_a + 0.5 (c_b - c_c),    a, b, c drawn of the population, all different;  kept where the margin falls

    A candidate c is (row, column, colours) for each pixel, in [0, 1]; entries that leave [0, 1] are drawn anew. First
    places are uniform, first colours N(1/2, 1/2) clipped. Two pixels of a candidate may meet: the later one is seen.
    Su et al. 2019 (arXiv 1710.08864), there with a population of 400 and 100 generations, and the label's probability
    where here the margin falls. Reads no gradient. Costs at most
    population (generations + 1) draws + 3 forwards.
    """

    threat: L0  # how many pixels may change: l0 of eps 1, 3, 5
    population: int = 400  # candidates an image
    generations: int = 100  # times they are replaced
    drops: Drops = "off"  # dropout and stochastic depth in the attack: off, frozen over the queries, or redrawn
    draws: int = 1  # looks averaged a query, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: l0, eps: 1}, population: 4, generations: 3}
    - {threat: {use: l0, eps: 3}, population: 5, generations: 2, drops: redrawn}
    """

    def __post_init__(self) -> None:
        if self.population < 3:
            raise ValueError(f"population={self.population} must be at least 3: a candidate is made of three others")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1: it counts the looks averaged a query")
        if self.generations < 0:
            raise ValueError(f"generations={self.generations} must not be negative: it counts replacements")

    @property
    def label(self) -> str:
        return f"pixels{number(self.threat.eps):g}"

    def cost(self) -> float:
        return self.population * (self.generations + 1) * self.draws + 3

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, C, H, W] in [0, 1], inside the threat model. goal: raised, not minus the margin."""
        return self.search(network, images, targets, key, goal).found

    def search(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Standing:
        """What stands and what fell, with the points found; `steps` counts queries."""
        with attacked(network, key=key), torch.no_grad():
            standing = Standing(network, images, targets, key, every=1)
            if not standing.count:
                return standing
            see = Sight(
                network, images, targets, standing.chunk_key, goal or Raising(overtaking), self.drops, self.draws
            )
            born = self._born(standing)
            breed = Breed(born, self._judged(standing, see, born, 0))
            for generation in range(1, self.generations + 1):
                if standing.due(generation):
                    breed = standing.pack(breed)
                    if not standing.count:
                        return standing
                born = bred(breed.candidates, standing.key.of("generation").at(generation))
                raised = self._judged(standing, see, born, generation)
                better = raised > breed.raised
                breed = replace(
                    breed,
                    candidates=torch.where(better[:, :, None, None], born, breed.candidates),
                    raised=torch.where(better, raised, breed.raised),
                )
            best = breed.candidates[torch.arange(len(breed.raised)), breed.raised.argmax(1)]
            standing.close(painted(standing.images, best))
        return standing

    def _born(self, standing: Standing) -> Tensor:
        """[b, population, pixels, 2 + C] of the first generation."""
        images, key = standing.images, standing.key.of("generation").at(0)
        pixels = min(int(number(self.threat.eps)), images[0, 0].numel())
        shape = (len(images), self.population, pixels)
        place = uniform(key.of("place"), (*shape, 2), images.device, images.dtype)
        colour = normal(key.of("colour"), (*shape, images.shape[1]), images.device, images.dtype)
        return torch.cat([place, (colour / 2 + 0.5).clamp(0, 1)], dim=3)

    def _judged(self, standing: Standing, see: Sight, candidates: Tensor, generation: int) -> Tensor:
        """[b, population] what is raised."""
        values = []
        for index, candidate in enumerate(candidates.unbind(1)):
            points = painted(standing.images, candidate)
            raised, logits = see.look(points, standing.key, generation * self.population + index, standing.row)
            standing.note(correct(logits, standing.labels) == 0, points)
            values.append(raised)
        return torch.stack(values, dim=1)


@dataclass(frozen=True)
class Breed:
    """The population, a row an image."""

    candidates: Tensor  # [b, population, pixels, 2 + C]
    raised: Tensor  # [b, population]


def painted(images: Tensor, candidate: Tensor) -> Tensor:
    """The images [b, C, H, W] with the pixels of a candidate [b, pixels, 2 + C]; of two at one place the later."""
    height, width = images.shape[2:]
    row, column = ((candidate[:, :, side] * length).long() for side, length in ((0, height), (1, width)))
    place = (row.clamp(max=height - 1) * width + column.clamp(max=width - 1))[:, None]
    points = images.flatten(2).clone()
    for pixel in range(candidate.shape[1]):  # one after another: in one scatter the order of equal places is open
        points.scatter_(2, place[:, :, pixel, None].expand(-1, images.shape[1], 1), candidate[:, pixel, 2:, None])
    return points.view_as(images)


def bred(candidates: Tensor, key: Key) -> Tensor:
    """c_a + 0.5 (c_b - c_c) for all of a population [b, population, ...], entries outside [0, 1] drawn anew."""
    parents = trios(key.of("parents"), len(candidates), candidates.shape[1], candidates.device)
    rows = torch.arange(len(candidates), device=candidates.device)[:, None]
    one, two, three = (candidates[rows, parent] for parent in parents)
    born = one + WEIGHT * (two - three)
    anew = uniform(key.of("anew"), candidates.shape, candidates.device, candidates.dtype)
    return torch.where((born < 0) | (born > 1), anew, born)


def trios(key: Key, rows: int, population: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Three int64 [rows, population]: for each place three different members of the population, all alike."""
    sizes = torch.tensor([population, population - 1, population - 2]).to(device, non_blocking=True)
    first, second, third = (bits(key, (rows, population, 3), device) * sizes >> 32).unbind(2)
    second = second + (second >= first)
    third = third + (third >= torch.minimum(first, second))
    return first, second, third + (third >= torch.maximum(first, second))
