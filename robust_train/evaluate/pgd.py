"""The evaluation by projected gradient ascent: an upper bound of robust accuracy, and named so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from robust_train.attacks.combine import Restarts
from robust_train.attacks.pgd import PGD
from robust_train.evaluate.masking import signs, without_gradient
from robust_train.evaluate.report import Figure, Report, Seen, judge
from robust_train.keyed import Key
from robust_train.nouns import Attack, Batch, Dataset, Evaluator, Place, Threat
from robust_train.read.errors import ConfigError
from robust_train.read.parse import tree_of
from robust_train.read.registry import evaluators

Watch = Callable[[str], Seen | None]
"""Given the name of what begins, who is told of its progress."""


@evaluators.register("pgd")
@dataclass(frozen=True)
class PGDEvaluation(Evaluator):
    """Clean accuracy, PGD with restarts, accuracy against eps, a table a class, and signs of masking.

    An image is robust that is right when clean and in every restart. Every verdict is a fresh float32 forward; starts
    are drawn by the image's identity, so that neither chunk nor device decides one. Costs 2 steps + 1 forwards an image
    and restart, and 2 steps + 2 a point of the curve.
    """

    threat: Threat
    steps: int = 50  # gradients per image and start
    step_size: float | None = None  # in the threat's unit; null: 2.5 eps / steps
    restarts: int = 2  # independent random starts; the worst counts
    curve: int = 4  # points of accuracy against eps up to 2 eps, of one start each; 0: no curve
    images: int | None = None  # the first so many validation images; null: all
    chunk: int = 256  # consecutive images that are attacked together

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("restarts", 1), ("curve", 0), ("chunk", 1), ("images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size={self.step_size:g} must be positive: it is how far a step goes")

    def __call__(
        self, network: Any, data: Dataset, key: Key, device: Any = "cpu", watch: Watch = lambda name: None
    ) -> Report:
        """Judge `network` on the validation images of `data`. Raises ConfigError where there are none."""
        attack = self.attack
        judged = judge(network, self._batches(data), attack, key.of("figure"), device, watch(attack.label))
        count = len(judged.sample)
        if not count:
            raise ConfigError("there are no images to judge: name validation shards (tools.eval: --data)")
        clean = Figure("clean", int(judged.clean.sum()), count, 0.0)
        robust = Figure(attack.label, int(judged.robust.sum()), count, self.eps, tree_of(attack))
        curve = (clean, *(self._point(network, data, key, device, watch, eps) for eps in self.radii))
        flat = without_gradient(network, next(self._batches(data)).to(device))
        classes = tuple(judged.per_class(network.classes if hasattr(network, "classes") else data.classes))
        return Report((clean, robust), curve if self.curve else (), classes, signs(curve, flat))

    @property
    def eps(self) -> float:
        """The radius of the threat model."""
        return self.threat.eps  # type: ignore[attr-defined]

    @property
    def attack(self) -> Attack:
        """What the figure beside the clean one is made with."""
        return self._pgd(self.eps, self.step_size, self.restarts)

    @property
    def radii(self) -> list[float]:
        """Those of the curve: evenly up to 2 eps; for pixels up to 1 at most, where everything is allowed."""
        most = min(2 * self.eps, 1.0) if self.threat.use == "linf" else 2 * self.eps
        return [most * (index + 1) / self.curve for index in range(self.curve)]

    def _point(self, network: Any, data: Dataset, key: Key, device: Any, watch: Watch, eps: float) -> Figure:
        attack = self._pgd(eps, None, 1)  # one key for all points: a larger ball starts from a larger copy of one draw
        judged = judge(
            network, self._batches(data), attack, key.of("curve"), device, watch(f"{attack.label}, eps {eps:.4g}")
        )
        return Figure(attack.label, int(judged.robust.sum()), len(judged.sample), eps, tree_of(attack))

    def _pgd(self, eps: float, size: float | None, restarts: int) -> Attack:
        threat = replace(self.threat, eps=eps)  # type: ignore[type-var]
        one = PGD(threat, self.steps, 2.5 * eps / self.steps if size is None else size)
        return one if restarts == 1 else Restarts(one, restarts)

    def _batches(self, data: Any) -> Iterator[Batch]:
        return data.validation_batches(Place(), self.chunk, self.images)
