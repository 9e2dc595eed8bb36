"""Evaluation under corruptions: each image is corrupted once, and each network asked once, for all that is judged.

A panel of E ensembles of M networks each, taken from N checkpoints, costs N forwards of every image and not E M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from robust_train.data.corruptions import SEVERITIES
from robust_train.data.corruptions.benchmark import parameters
from robust_train.data.corruptions.weather import FORMATS, TEXTURES, texture
from robust_train.data.stored_corruptions import StoredCorruption
from robust_train.disk import checksum
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.columns import Columns
from robust_train.evaluate.corruptions import Cell, Robustness, corrupted
from robust_train.evaluate.report import Report
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.ensemble import Mean, mixed
from robust_train.nouns import Batch, Dataset, Evaluator, Piece, Tensors
from robust_train.read.errors import ConfigError
from robust_train.read.paths import FilePath

CLEAN = "clean"


@dataclass(frozen=True)
class Sight:
    """What networks see of a chunk."""

    cell: Cell | None  # a corruption that is made here, and its severity; None: the images as they are
    frost: tuple[tuple[str, str], ...] = ()  # checksums of its textures, where it is frost


@dataclass(frozen=True)
class Answer:
    """The logits of one network."""

    noise: str | None  # the name of its stream of noise; None: of a network that is judged alone


@dataclass(frozen=True)
class Verdict:
    """Whether a network is right, or an ensemble of several, which sees the very answers its members are judged by."""

    mean: Mean = "logits"
    shares: tuple[float, ...] = (1.0,)  # a weight each, together 1


@dataclass(frozen=True)
class Voice:
    """Who is judged, by the names of its networks, and under which name."""

    name: str
    networks: tuple[str, ...]
    noises: tuple[str | None, ...] = (None,)  # the stream of each
    verdict: Verdict = Verdict()


@dataclass(frozen=True)
class Course(Evaluator):
    """Accuracy under corruptions at five severities, of one network or of several at once (`voices`)."""

    corruptions: tuple[str, ...]  # in the benchmark's order
    chunk: int = 256  # consecutive images judged together
    images: int | None = None  # the first so many; of stored folders so many, evenly over the set; None: all
    frost: FilePath | None = None  # the folder of its textures
    stored: StoredCorruption | None = None  # corrupted images as published; None: the clean ones are corrupted
    voices: tuple[Voice, ...] = ()  # who is judged; none: the one network that there is

    harmless: ClassVar[tuple[str, ...]] = ("corruptions", "chunk", "images", "frost", "stored", "voices")  # in pieces

    @property
    def cells(self) -> dict[str, Cell]:
        """Each corruption at each severity, by the name of its pieces: fog/3."""
        return {f"{name}/{severity}": (name, severity) for name in self.corruptions for severity in SEVERITIES}

    def check(self, size: int, flag: str) -> None:
        """Raises ConfigError or DataError for what could not be made of images of `size`: before any work, not in it.

        flag: what names the folder of frost's textures, for the message.
        """
        if self.stored is not None:
            return
        for name in self.corruptions:
            parameters(name, size, 1)
        if "frost" not in self.corruptions:
            return
        if self.frost is None:
            raise ConfigError(
                f"frost needs textures: {flag} with frost1 to frost5 (.png, .jpg or .webp), as in "
                "ImageNet-C/imagenet_c/imagenet_c/frost of github.com/hendrycks/robustness; or leave it out, as in "
                "noise,blur,digital,snow,fog,brightness"
            )
        for name in TEXTURES:
            texture(self.frost, name, parameters("frost", size, 1)[2])

    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Columns) -> list[Piece]:
        """For each cell what is seen and what is answered, which is not kept; and the verdict on each voice."""
        voices = self.voices or (Voice("", tuple(networks)),)
        made: list[Piece] = []
        for name, cell in {CLEAN: None, **self.cells}.items():
            own = None if self.stored is None or cell is None else self.stored.at(*cell)
            at: dict[str, Any] = {"data": own, "on": "" if own is None else name}
            sight = Sight(None if own is not None else cell, self._textures() if cell and cell[0] == "frost" else ())
            made.append(Piece(f"images/{name}", sight, networks=(), kept=False, **at))
            asked = {pair: None for voice in voices for pair in zip(voice.networks, voice.noises, strict=True)}
            for network, noise in asked:
                title = f"answers/{network}/{name}"
                made.append(Piece(title, Answer(noise), (f"images/{name}",), (network,), kept=False, **at))
            for voice in voices:
                needs = tuple(f"answers/{network}/{name}" for network in voice.networks)
                tally = CLEAN if cell is None else "corrupted"
                title = f"{voice.name}/{name}" if voice.name else name
                made.append(Piece(title, voice.verdict, needs, (), tally=tally, **at))
        return made

    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Key
    ) -> dict[str, torch.Tensor]:
        """{"images"} as they are seen, {"logits"} of a network, or {"right"}: [n] bool.

        What is seen is a function of the image, its sample and the key alone: all networks see the same.
        """
        what = piece.what
        if isinstance(what, Sight):
            return {
                "images": batch.images if what.cell is None else corrupted(batch, *what.cell, key, self.frost).images
            }
        if isinstance(what, Answer):
            ((name,), (seen,)) = piece.networks or (), before.values()
            stream = key.of("verdict") if what.noise is None else key.of("verdict").of(what.noise)
            with judged(networks[name], stream.rows(batch.sample)), torch.no_grad():
                return {"logits": networks[name](seen["images"])}
        each = [answer["logits"] for answer in before.values()]
        classes = sorted({logits.shape[1] for logits in each})
        if len(classes) > 1:
            name = piece.name.rpartition("/")[0].rpartition("/")[0]
            raise ConfigError(f"{name}: members answer with {classes} classes: an ensemble's all have the same")
        logits = each[0]
        if len(each) > 1:
            shares = torch.tensor(what.shares, dtype=torch.float64, device=logits.device)
            logits = mixed(torch.stack(each), shares, what.mean)
        return {"right": correct(logits, batch.targets).bool()}

    def report(self, found: Columns) -> Report:
        """The accuracies of the one network that was judged."""
        result = self.robustness(found)
        figures = result.figures.values()
        return Report((*([] if result.clean_figure is None else [result.clean_figure]), *figures), result=result)

    def robustness(self, found: Columns, voice: str = "") -> Robustness:
        """What the verdicts on one voice come to."""
        sums = {}
        for name in (CLEAN, *self.cells):
            right = found[f"{voice}/{name}" if voice else name].get("right", torch.zeros(0))
            sums[name] = (int(right.sum()), len(right))
        cells = {cell: sums[name] for name, cell in self.cells.items() if sums[name][1]}
        return Robustness(cells, sums[CLEAN] if sums[CLEAN][1] else None, found.shape[-1])

    def on(self, clean: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """All that decides the images: networks judged on the same of these may be compared. clean: of the data."""
        found: dict[str, Any] = {**clean, "images": self.images, "seed": seed}
        if self.frost is not None:
            found["frost"] = dict(self._textures())
        if self.stored is not None:
            sums: dict[str, str] = {}
            for name, severity in self.cells.values():
                sums |= {} if f"{name}.npy" in sums else self.stored.at(name, severity).checksums()
            found["stored"] = sums
        return found

    def _textures(self) -> tuple[tuple[str, str], ...]:
        """The checksums of frost's textures."""
        files = (Path(str(self.frost)) / f"{name}{ending}" for name in TEXTURES for ending in FORMATS)
        return tuple((path.name, checksum(path)) for path in files if path.is_file())
