"""Pieces of losses that objectives take by name: how much an image counts, how far two answers are apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robust_train.nouns.learning import Part, State
from robust_train.nouns.schedule import Noun

if TYPE_CHECKING:
    from robust_train.nouns.roots import Dataset


class Weighting(Noun, ABC):
    """How much each image counts in a loss, from what the network says of it."""

    def layers(self, network: Any) -> tuple[str, ...]:
        """The layers whose outputs on attacked images it looks at. None by default."""
        return ()

    @abstractmethod
    def __call__(
        self, clean: Tensor, attacked: Tensor, targets: Tensor, features: Mapping[str, Tensor], key: Any
    ) -> Tensor:
        """[B] weights, with a graph only where it says so.

        clean, attacked [B, C]: logits. targets: labels or distributions. features: {layer: its output on attacked
        images, [B, ...]} of `layers`.
        """

    def groups(self) -> int:
        """Consecutive images that are weighed against each other, which a micro-batch may not cut; 1: each alone."""
        return 1


class Divergence(Noun, ABC):
    """How far one answer is from another, in the place of a KL term. It may remember, by the objective's own means."""

    @abstractmethod
    def __call__(self, reference: Tensor, logits: Tensor, targets: Tensor, state: State) -> Tensor:
        """[B], in float32 or better. reference: logits [B, C] of clean images or of teachers; logits: the others'."""

    def parts(self, data: Dataset) -> Mapping[str, Part]:
        """What it remembers, as `Objective.parts`; nothing by default."""
        return {}

    def sums(self, reference: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What of a micro-batch it is to remember, as `Loss.sums`."""
        return {}

    def settle(self, state: State, sums: Mapping[str, Tensor], update: int) -> None:
        """Remember what was summed over the global batch."""

    def groups(self) -> int:
        """Consecutive images that meet; 1: each alone."""
        return 1
