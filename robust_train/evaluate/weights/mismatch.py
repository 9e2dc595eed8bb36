"""Accuracy of networks whose weights are off: at random, and as an adversary would have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.report import Report, Table
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.nouns import Batch, Dataset, Evaluator, Piece, Tensors
from robust_train.read.registry import evaluators
from robust_train.threats.weight_box import WeightBox, mismatch
from robust_train.threats.weights import moved


@evaluators.register("mismatch")
@dataclass(frozen=True)
class Mismatch(Evaluator):
    """Accuracy with weights theta + zeta |theta| R, over drawn R ~ N(0, 1): mean, deviation, least; and at the worst.

    A draw is one network for all images: its accuracy is over all of them, and the table has mean, standard deviation
    and least over the draws. The worst weights are sought in the box |theta* - theta| <= zeta |theta| for each chunk
    of images, without labels: an adversary that knows the images, stronger the smaller the chunk. In eval mode.
    Buechel, Faber and Muir 2022 (arXiv 2106.05009, section 4). Costs `samples` forwards an image and zeta; 3 steps + 2
    for each worst.
    """

    zetas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7)  # widths of the random mismatch
    samples: int = 100  # networks drawn at each
    worst: tuple[float, ...] = (0.1, 0.2)  # half-widths of the adversary's box
    steps: int = 10  # of the adversary
    norms: bool = False  # whether normalisation layers' own weights are off too
    chunk: int = 500  # consecutive images judged together, and attacked together
    images: int | None = None  # the first so many validation images; null: all

    examples = "- {zetas: [0.3], samples: 2, worst: [0.1], steps: 2, chunk: 8, images: 8}"
    harmless: ClassVar[tuple[str, ...]] = ("images",)

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "chunk", "images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("zetas", "worst"):
            if any(zeta < 0 for zeta in getattr(self, name)):
                raise ValueError(f"{name}={list(getattr(self, name))} must not be negative: shares of each weight")

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> tuple[Piece, ...]:
        """For each network the weights as they are, each width of the mismatch, each box."""
        what = [("clean", 0.0, 1.0)]
        what += [("mismatch", zeta, float(self.samples)) for zeta in self.zetas]
        what += [("worst", zeta, 3.0 * self.steps + 2) for zeta in self.worst]
        return tuple(
            Piece(f"{kind} {zeta:g} of {name}", what=(kind, zeta), networks=(name,), cost=cost)
            for name in networks
            for kind, zeta, cost in what
        )

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, torch.Tensor]:
        """{"right"}: [n, draws] verdicts, a column a network that was drawn."""
        (name,), (kind, zeta) = piece.networks or (), piece.what
        network, box = networks[name], WeightBox(zeta, self.steps, norms=self.norms)
        weights = {own: p.detach() for own, p in box.weights(network, frozen=True).items()}
        right = []
        with judged(network, key.of("network").rows(batch.sample)):
            if kind == "clean":
                with torch.no_grad():
                    right.append(correct(network(batch.images), batch.targets))
            elif kind == "mismatch":
                for draw in range(self.samples):
                    chip = mismatch(weights, zeta, key.of("mismatch").at(draw))
                    with torch.no_grad():
                        right.append(correct(moved(network, chip)(batch.images), batch.targets))
            else:
                with torch.no_grad():
                    clean = network(batch.images)
                a, s = box.search(network, weights, batch.images, clean, key.of("box"))
                with torch.no_grad():
                    right.append(correct(moved(network, box.at(weights, a, s))(batch.images), batch.targets))
        return {"right": torch.stack(right, 1)}

    def report(self, found: Columns) -> Report:
        """A row a network, kind and width."""
        rows = []
        for name in found.judged:
            (kind, zeta), (network,) = found.pieces[name].what, found.pieces[name].networks or ("",)
            shares = found[name]["right"].double().mean(0)
            spread = float(shares.std()) if len(shares) > 1 else 0.0
            rows.append((network, kind, zeta, float(shares.mean()), spread, float(shares.amin()), len(shares)))
        says = (
            f"of {len(found.rows()[0]):,} images; mismatch: theta + zeta |theta| N(0, 1), one network a draw; worst: "
            f"the box zeta |theta|, searched by {self.steps} steps for each {self.chunk} images"
        )
        columns = ("", "weights", "zeta", "mean", "sd", "least", "draws")
        return Report(tables=(Table("accuracy with weights that are off", columns, tuple(rows), says),))
