"""When training is judged: on validation images, and whether it has overfitted to its own attack."""

from __future__ import annotations

from dataclasses import dataclass, field

from robust_train.nouns import Attack, Schedule, within
from robust_train.read.span import Span, due, updates_of, whole


@dataclass(frozen=True)
class Probe:
    """A watch for catastrophic overfitting: a stronger attack on the first images of a training batch.

    In training with one-step attacks, accuracy under PGD may fall to nothing within an epoch while accuracy under the
    training attack rises (Wong et al. 2020, arXiv 2001.03994, who look with PGD-5 once an epoch and stop at a fall of
    0.2). Recorded as probe/PGD10 and the like, and probe/collapsed; where it is 1, the run also says so.
    """

    every: Span = 0  # between two probes: updates, or a share of the run (5%); 0: none
    attack: Attack | None = None  # such as pgd with 10 steps, in the threat model of training
    images: int = 64  # of the global batch, its first
    fall: float = 0.2  # of accuracy between two probes: more than that is a collapse

    def __post_init__(self) -> None:
        whole("every", self.every)
        if self.images < 1:
            raise ValueError(f"images={self.images} must be at least 1")
        if self.every and self.attack is None:
            raise ValueError("attack is missing: name the attack to probe with, such as pgd with 10 steps")

        settled("attack", self.attack)

    def due(self, update: int, updates: int) -> bool:
        """Whether a probe comes after `update`."""
        return due(self.every, update, updates)


@dataclass(frozen=True)
class Validate:
    """When and how the run is validated. An average of the weights, where one is kept, is what is judged."""

    every: Span = 0  # between validations: updates, or a share of the run (10%); 0: only the final evaluation
    attack: Attack | None = None  # robust accuracy is under this attack; null: clean accuracy only
    images: int | None = None  # the first so many validation images; null: all
    final: Attack | None = None  # a stronger attack on all validation images after the last update; null: `attack`
    beside: tuple[Attack, ...] = ()  # further attacks after the last update, each a figure of its own
    chunk: int = 256  # consecutive images that are judged together
    probe: Probe = field(default_factory=Probe)  # a watch for catastrophic overfitting, on training batches

    def __post_init__(self) -> None:
        whole("every", self.every)
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1")
        settled("attack", self.attack)
        settled("final", self.final)
        for place, attack in enumerate(self.beside):
            settled(f"beside[{place}]", attack)

    def due(self, update: int, updates: int) -> bool:
        """Whether a validation comes after `update`. The last update's competes for the best checkpoint too."""
        return updates_of(self.every, updates) > 0 and (update + 1 == updates or due(self.every, update, updates))


def settled(name: str, attack: Attack | None) -> None:
    """Refuse an attack that changes over the run: what it finds at two updates is compared, and the best one kept.

    Raises ValueError.
    """
    for place, _ in within(attack, Schedule, name):
        raise ValueError(
            f"{place} is a schedule, and what judges must not change over a run: accuracies of two updates are "
            "compared, and the best checkpoint is chosen by them. Write the number, such as the one that it ends at"
        )
