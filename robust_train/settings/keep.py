"""When a run writes checkpoints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keep:
    """When checkpoints are written and which are kept."""

    every: int = 0  # updates between checkpoints; the last update always has one; 0: only that
    keep: int = 2  # the newest ones that are kept; the best by validation is kept beside them

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise ValueError(f"every={self.every} must be at least 0 and keep={self.keep} at least 1")

    def due(self, update: int, updates: int) -> bool:
        """Whether a checkpoint is written after `update`."""
        return update + 1 == updates or (self.every > 0 and (update + 1) % self.every == 0)
