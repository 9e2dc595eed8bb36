"""The roots of what fools: what a threat model, a goal, an attack must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust_train.nouns.schedule import Noun

PerImage = Callable[[Tensor, Tensor], Tensor]
"""A loss of each image alone: (logits [B, C], targets [B] or [B, C]) -> [B], in float32 or better."""

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What an attack raises, at points of some of its images: (points [b, ...], rows [b]) -> (score [b], logits [b, C]).

rows: which of the images that the goal was made for the points belong to; attacks set images aside, and pad."""


class Threat(Noun, ABC):
    """A set of allowed perturbations with coordinates `z`, and how to move in it.

    `z` is a tensor [B, ...] or a tuple of such (one per level); `images` [B, ...] in [0, 1].
    Nothing here needs a graph. Every image is treated alone: a row never depends on another row.
    """

    @abstractmethod
    def start(self, images: Tensor, key: Any) -> Any:
        """A random point of the set, from the key's rows; inside ball and box."""

    @abstractmethod
    def zero(self, images: Tensor) -> Any:
        """The point that changes nothing."""

    @abstractmethod
    def apply(self, images: Tensor, z: Any) -> Tensor:
        """Adversarial images in [0, 1]."""

    @abstractmethod
    def step(self, images: Tensor, z: Any, gradient: Tensor, size: float) -> Any:
        """One projected step of `size`, in the threat's unit, that raises a loss whose image gradient is given."""

    @abstractmethod
    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """[B]: how far each image was moved, in the unit of `eps`; for checks and reports."""

    def weight(self, z: Any, keep: Tensor, other: Any) -> Any:
        """Rows of `z` where keep [B] is true, else rows of `other` (best iterate, restarts)."""
        if isinstance(z, tuple):
            return tuple(self.weight(a, keep, b) for a, b in zip(z, other, strict=True))
        return torch.where(keep.view(-1, *[1] * (z.dim() - 1)), z, other)


class Goal(ABC):
    """What an attack raises, made anew for the images of each call: a divergence, a distance to a guide, a loss."""

    @abstractmethod
    def of(self, network: Any, images: Tensor, targets: Tensor, key: Any) -> Score:
        """What is asked about points of these images, each by its row.

        Called once a call, inside the attack's modes: its BatchNorm, its first masks, parameters frozen. What it looks
        at (the clean image's answer, a guide's features) it looks at here; that costs what it costs, once. key: names
        the images' rows.
        """


@dataclass(frozen=True)
class Raising(Goal):
    """The goal of a loss of each image alone: Raising(cross_entropy)."""

    loss: PerImage
    against: Tensor | None = None  # [B, ...] what it compares the logits with, in place of the targets

    def of(self, network: Any, images: Tensor, targets: Tensor, key: Any) -> Score:
        reference = targets if self.against is None else self.against

        def score(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = network(points)
            return self.loss(logits, reference[rows]), logits

        return score


ENTRIES = ("__call__", "search", "nearest")  # of an attack


def _through_the_door(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def entry(attack: Attack, *given: Any, **named: Any) -> Any:
        # by name: this floor knows nothing of attacks
        return import_module("robust_train.attacks.given").entered(method, attack, *given, **named)

    return entry


class Attack(Noun, ABC):
    """A search in a threat model for what fools a network. Network parameters, modes and gradients stay untouched."""

    threat: Threat

    def __init_subclass__(cls, **named: Any) -> None:
        """Its public methods go through `robust_train.attacks.given`, which looks at what the caller gives."""
        super().__init_subclass__(**named)
        for name in ENTRIES:
            method = vars(cls).get(name)
            if method is not None and not getattr(method, "__isabstractmethod__", False):
                setattr(cls, name, _through_the_door(method))

    sets_aside: bool = False  # whether images that have fallen cost no more: then `cost` is the most that a call costs
    a_stranger_s: bool = False  # whether its points may be anything, and are judged one by one by who asked for them
    by_row: bool = True  # whether an image's point is the same in any batch, also where the network draws its own noise
    usual_steps: ClassVar[int] = 50  # where the literature judges by it; queries where it has such
    usual_way: ClassVar[float] = 2.5  # the lengths of these steps together, in radii

    @abstractmethod
    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        """Adversarial images in [0, 1], inside the threat model, without a graph. goal: what it raises; None: its own.

        Raises ValueError for a goal where it raises none.
        """

    @abstractmethod
    def cost(self) -> float:
        """What a call costs, in forward passes of the images, beside what making its goal does."""

    @classmethod
    def usual(cls, eps: float, steps: int | None = None) -> dict[str, Any]:
        """The fields without a default, as the literature has them where it judges at a radius: for attacks by name.

        steps: in place of the usual number; all of them go the same way together. What an attack has no field for is
        left out by who asks.
        """
        count = cls.usual_steps if steps is None else steps
        return {"steps": count, "queries": 5000, "step_size": cls.usual_way * eps / max(count, 1)}

    def goals(self) -> int:
        """How often a call makes its goal."""
        return int(self.cost() > 0)

    def reach(self) -> tuple[Threat, ...]:
        """The threat models one of which each of its images lies in: its own, of a union each."""
        return (self.threat,)

    @property
    def label(self) -> str:
        """The name that stands beside its figures: "pgd20"."""
        return f"{self.use.replace('-', '')}{getattr(self, 'steps', '')}"
