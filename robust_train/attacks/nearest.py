"""Attacks that look for the nearest point that fools, not for the worst point of a ball."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_train.attacks.attacked import attacked, exactly, undropped
from robust_train.attacks.chance import judged, passes
from robust_train.attacks.given import finite, wide
from robust_train.attacks.sight import refuse
from robust_train.keyed import Key, integers
from robust_train.nouns import Attack, Goal, number
from robust_train.threats.ball import Ball


@dataclass(frozen=True)
class Nearest:
    """What such an attack found, a row an image."""

    points: Tensor  # [B, ...] in [0, 1]; the image itself where it is wrong when clean, or where nothing fooled
    distance: Tensor  # [B] in the norm of the threat model; 0 where wrong when clean, inf where nothing fooled

    @property
    def fooled(self) -> Tensor:
        """[B] whether anything fooled."""
        return self.distance.isfinite()


class NearestAttack(Attack):
    """A search for the smallest perturbation that fools, in the norm of its threat model.

    `nearest` gives the points however far; called as an attack it gives them brought into the ball of radius eps, where
    those from beyond need not fool. Compare such attacks by the median of their distances, failures counting as inf.
    """

    threat: Ball  # whose norm is made small, and whose eps bounds the images it gives when it is called

    @abstractmethod
    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        """The nearest points that fool. within: a distance that is near enough, where an image may be set aside."""

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph."""
        refuse(self, goal, "looks for the nearest point that fools and raises no goal")
        eps = number(self.threat.eps)
        found = self.nearest(network, images, targets, key, eps)
        brought = self.threat.apply(images, self.threat.project(images, found.points - images))
        # a point inside stays to the bit: x + (p - x) rounds, and beside the boundary that decides
        return torch.where(wide(found.distance <= eps, images), found.points, brought)


@contextmanager
def measuring(network: Any, key: Key | None = None) -> Iterator[None]:
    """Hold `network` as `attacked` does, in float32 and without dropout: beside the boundary bfloat16 decides nothing.

    BatchNorm uses its running statistics: images that are done are set aside, which would cut its groups. key: of the
    network's own noise, where it has any; None: as it is.
    """
    with attacked(network, key=key), exactly(network), undropped(network):
        yield


def measured(threat: Ball, network: Any, images: Tensor, targets: Tensor, points: Tensor, key: Key) -> Nearest:
    """What some points are worth by a fresh forward: those that do not fool become the image, at distance inf.

    Where the network draws noise, a point fools that is wrong in half of 100 passes or more. key: of their noise.
    """
    key = key.naming(images).of("measured")
    with measuring(network, key):
        share, _ = judged(network, points, targets, key, passes(network))
        fooled = (share <= 0.5) & finite(points)
    points = torch.where(wide(fooled, points), points, images)
    return Nearest(points, threat.distance(images, points).masked_fill(~fooled, torch.inf))


def wrong_classes(key: Key, labels: Tensor, classes: int) -> Tensor:
    """int64 [B]: for each image a class that is not its label, all others alike, from the key's rows."""
    drawn = integers(key, (len(labels),), classes - 1, labels.device)
    return drawn + (drawn >= labels)
