"""When a run writes checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from robust_train.read.span import Span, due, whole


@dataclass(frozen=True)
class Keep:
    """When checkpoints are written and which are kept."""

    every: Span = 0  # between checkpoints: updates, or a share of the run (10%); the last has one; 0: only that
    keep: int = 2  # the newest ones that are kept; the best by validation is kept beside them

    def __post_init__(self) -> None:
        whole("every", self.every)
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} must be at least 1")

    def due(self, update: int, updates: int) -> bool:
        """Whether a checkpoint is written after `update`."""
        return update + 1 == updates or due(self.every, update, updates)
