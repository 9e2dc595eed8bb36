"""How fast a network's answers can change around images: the empirical local Lipschitz constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from robust_train.evaluate.accuracy import judged, refuse_unboxed
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import Report, Table
from robust_train.keyed import Key
from robust_train.losses import full
from robust_train.nouns import Batch, Dataset, Evaluator, Piece, Tensors, Threat
from robust_train.read.registry import evaluators


@evaluators.register("lipschitz")
@dataclass(frozen=True)
class Lipschitz(Evaluator):
    """The largest change of the logits over that of the image, in a threat model's ball, a mean over images.

        L = mean_x max_{x' in B(x)} |f(x) - f(x')|_1 / d(x, x')        d: the threat model's distance

    Yang et al. 2020 (arXiv 2003.02460), who take L-infinity balls. Sought by projected ascent on the numerator from a
    random start; the largest quotient on the way counts, so it is a lower bound. Costs 3 steps + 2 forwards an image.
    """

    threat: Threat  # the ball, with its eps
    steps: int = 10  # of the ascent, each of 2.5 eps / steps
    chunk: int = 256  # consecutive images judged together
    images: int | None = None  # the first so many validation images; null: all

    examples = "- {threat: {use: linf, eps: 0.1}, steps: 2, images: 8}"
    harmless: ClassVar[tuple[str, ...]] = ("images",)

    def __post_init__(self) -> None:
        for name in ("steps", "chunk", "images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> tuple[Piece, ...]:
        """One for each network."""
        return tuple(Piece(f"of {name}", networks=(name,), cost=3 * self.steps + 2) for name in networks)

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, torch.Tensor]:
        """{"quotient"}: [n], the largest that was met."""
        refuse_unboxed(batch.scale, self.use)
        (name,), images = piece.networks or (), batch.images
        network, threat, key = networks[name], self.threat, key.of("lipschitz").rows(batch.sample)
        z, most = threat.start(images, key), images.new_zeros(len(images))
        with judged(network, key.of("network")):
            with torch.no_grad():
                here = full(network(images))
            for step in range(self.steps + 1):
                points = threat.apply(images, z).detach().requires_grad_()
                with torch.enable_grad():
                    change = (full(network(points)) - here).abs().sum(1)
                    (gradient,) = torch.autograd.grad(change.sum(), points)
                distance = threat.distance(images, points.detach())
                most = torch.maximum(most, (change.detach() / distance).where(distance > 0, 0))
                if step < self.steps:
                    z = threat.step(images, z, gradient, 2.5 * threat.eps / self.steps)  # type: ignore[attr-defined]
        return {"quotient": most}

    def report(self, found: Columns) -> Report:
        """A row for each network."""
        rows = []
        for name in found.judged:
            each = found[name]["quotient"].double()
            rows.append((name.removeprefix("of "), float(each.mean()), float(each.median()), float(each.amax())))
        threat, count = self.threat, len(found.rows()[0])
        says = (
            f"|f(x) - f(x')|_1 / d(x, x'), the largest met in {threat.use} eps {threat.eps:.4g} by {self.steps} steps, "  # type: ignore[attr-defined]
            f"of {count:,} images; logits over the unit of eps"
        )
        return Report(
            tables=(Table("empirical local Lipschitz constant", ("", "mean", "median", "max"), tuple(rows), says),)
        )
