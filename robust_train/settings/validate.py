"""When training is judged: on validation images, and whether it has overfitted to its own attack."""

from __future__ import annotations

from dataclasses import dataclass, field

from robust_train.nouns import Attack


@dataclass(frozen=True)
class Probe:
    """A watch for catastrophic overfitting: a stronger attack on the first images of a training batch.

    In training with one-step attacks, accuracy under PGD may fall to nothing within an epoch while accuracy under the
    training attack rises (Wong et al. 2020, arXiv 2001.03994, who look with PGD-5 once an epoch and stop at a fall of
    0.2). Recorded as probe/PGD10 and the like, and probe/collapsed; where it is 1, the run also says so.
    """

    every: int = 0  # updates between two probes; 0: none
    attack: Attack | None = None  # such as pgd with 10 steps, in the threat model of training
    images: int = 64  # of the global batch, its first
    fall: float = 0.2  # of accuracy between two probes: more than that is a collapse

    def __post_init__(self) -> None:
        if self.every < 0 or self.images < 1:
            raise ValueError(f"every={self.every} must be at least 0 and images={self.images} at least 1")
        if self.every and self.attack is None:
            raise ValueError("attack is missing: name the attack to probe with, such as pgd with 10 steps")

    def due(self, update: int) -> bool:
        """Whether a probe comes after `update`."""
        return self.every > 0 and (update + 1) % self.every == 0


@dataclass(frozen=True)
class Validate:
    """When and how the run is validated. An average of the weights, where one is kept, is what is judged."""

    every: int = 0  # updates between validations, and after the last update; 0: only the final evaluation
    attack: Attack | None = None  # robust accuracy is under this attack; null: clean accuracy only
    images: int | None = None  # the first so many validation images; null: all
    final: Attack | None = None  # a stronger attack on all validation images after the last update; null: `attack`
    chunk: int = 256  # consecutive images that are judged together
    probe: Probe = field(default_factory=Probe)  # a watch for catastrophic overfitting, on training batches

    def __post_init__(self) -> None:
        if self.every < 0 or self.chunk < 1:
            raise ValueError(f"every={self.every} must be at least 0 and chunk={self.chunk} at least 1")

    def due(self, update: int, updates: int) -> bool:
        """Whether a validation comes after `update`. The last update's competes for the best checkpoint too."""
        return self.every > 0 and ((update + 1) % self.every == 0 or update + 1 == updates)
