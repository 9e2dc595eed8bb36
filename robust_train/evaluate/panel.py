"""Many networks under corruptions at once: each image is corrupted once, and each network runs once, for all of them.

A panel of E ensembles of M networks each, taken from N checkpoints, costs N forwards of every image and not E M.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train import checkpoint
from robust_train.data.manifest import shard_name
from robust_train.disk import checksum, digest
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.corruption_work import CLEAN, Course
from robust_train.evaluate.corruptions import Robustness
from robust_train.evaluate.files import Files
from robust_train.evaluate.report import versions
from robust_train.evaluate.work import Piece
from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.ensemble import Mean, mixed
from robust_train.nouns import Batch, Dataset, Place
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.trained import Members, is_ensemble, network_of

Tell = Callable[[str, float, str], None]
"""Told what is done just now, which share of all work is done (0 to 1), and the accuracies so far."""


@dataclass(frozen=True)
class Entry:
    """A network, or an ensemble of several, under the name that it is judged by."""

    name: str
    members: tuple[str, ...]  # checkpoints, or folders of runs (its best checkpoint, else its newest)
    mean: Mean = "logits"
    weights: tuple[float, ...] | None = None  # a share each, together 1; None: equal ones

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise ValueError(f"{self.name}: members={list(self.members)} must be one checkpoint or more, none twice")
        shares = self.shares
        if len(shares) != len(self.members) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"{self.name}: weights={list(shares)} must be {len(self.members)} shares, none below 0, together 1"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each member."""
        return (1 / len(self.members),) * len(self.members) if self.weights is None else self.weights

    @classmethod
    def of(cls, name: str, path: str | Path) -> Entry:
        """What a path names: a checkpoint, a run's folder, or the YAML file of an ensemble."""
        if not is_ensemble(path):
            return cls(name, (str(path),))
        found = Members.load(Path(path))
        try:
            return cls(name, found.members, found.mean, found.weights)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Panel:
    """All that is judged."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            raise ValueError(f"a panel has one entry or more, each of its own name; twice: {', '.join(twice) or '-'}")

    def on(self, data: Dataset) -> Sitting:
        """The panel with its checkpoints found, before these images. Raises CheckpointError where one is not whole."""
        at: dict[str, str] = {}
        for path in dict.fromkeys(member for entry in self.entries for member in entry.members):
            if is_ensemble(path):
                raise ConfigError(f"{path} is an ensemble: name its members in the entry instead, as Entry.of does")
            at[path] = str(checkpoint.find(path).resolve())
        found = tuple(
            Entry(one.name, tuple(at[path] for path in one.members), one.mean, one.weights) for one in self.entries
        )
        names = {one.members[0]: one.name for one in reversed(found) if len(one.members) == 1}
        for one in found:
            for index, folder in enumerate(one.members):
                names.setdefault(folder, f"{one.name}/{index}")
        return Sitting(found, {folder: Known(name, _sum(folder)) for folder, name in names.items()}, data)


@dataclass(frozen=True)
class Known:
    """A checkpoint as a panel knows it."""

    name: str  # of the first entry that is it alone, else ENTRY/INDEX: its noise is the stream of this name
    checksum: str  # of its manifest, and by that of all its files


@dataclass(frozen=True)
class Sitting:
    """A panel before its images, as a value that travels: any process that reaches the same files makes the same of it.

    What verdicts of an entry are a function of, beside the images, stands in its tag, NAME@DIGEST: the checksums of its
    members and the names of their noise, its mean and its weights.
    """

    entries: tuple[Entry, ...]  # members by absolute folder
    known: Mapping[str, Known]  # by absolute folder
    data: Dataset

    @cached_property
    def tags(self) -> dict[str, Entry]:
        """The entries by their tags."""
        return {f"{entry.name}@{self._digest(entry)}": entry for entry in self.entries}

    def _digest(self, entry: Entry) -> str:
        members = [[self.known[folder].name, self.known[folder].checksum] for folder in entry.members]
        text = json.dumps([members, entry.mean, entry.shares])
        return digest(text)[:12]

    def at(self, folder: str) -> Sitting:
        """The same: its checkpoints are absolute."""
        return self

    def network(self, device: str = "cpu") -> Networks:
        """The networks, for `judge`."""
        return Networks(self, device)

    def images(self) -> Dataset:
        """The data set whose validation images are judged, prepared."""
        self.data.prepare()
        return self.data


class Networks:
    """The checkpoints of a sitting on one device, each loaded when it is first needed."""

    def __init__(self, sitting: Sitting, device: str) -> None:
        self.sitting, self.device = sitting, device
        self._loaded: dict[str, Any] = {}

    def right(self, batch: Batch, tags: Iterable[str], key: Key) -> dict[str, Tensor]:
        """[B] bool for each tag: whether it is right on the images. One forward a checkpoint, float32, in eval mode.

        A checkpoint draws its noise from key.of("verdict").of(its name), rows the samples: an ensemble sees the very
        answers that its members are judged by.
        """
        entries = {tag: self.sitting.tags[tag] for tag in tags}
        if not len(batch):
            return {tag: torch.zeros(0, dtype=torch.bool) for tag in entries}
        folders = dict.fromkeys(folder for entry in entries.values() for folder in entry.members)
        answers = {folder: self._answer(folder, batch, key) for folder in folders}
        found: dict[str, Tensor] = {}
        for tag, entry in entries.items():
            each = [answers[folder] for folder in entry.members]
            classes = sorted({logits.shape[1] for logits in each})
            if len(classes) > 1:
                raise ConfigError(
                    f"{entry.name}: members answer with {classes} classes: an ensemble's all have the same"
                )
            logits = each[0]
            if len(each) > 1:
                shares = torch.tensor(entry.shares, dtype=torch.float64, device=logits.device)
                logits = mixed(torch.stack(each), shares, entry.mean)
            found[tag] = correct(logits, batch.targets).bool().cpu()
        return found

    @torch.no_grad()
    def _answer(self, folder: str, batch: Batch, key: Key) -> Tensor:
        known = self.sitting.known[folder]
        if folder not in self._loaded:
            network = network_of(folder, self.device)
            if _sum(folder) != known.checksum:
                raise CheckpointError(f"{folder} was written anew while it was judged. Give the same command again.")
            self._loaded[folder] = network
        network = self._loaded[folder]
        with judged(network, key.of("verdict").of(known.name).rows(batch.sample)):
            return network(batch.images)


def judge(
    networks: Networks, data: Dataset, course: Course, place: Place, done: Mapping[Piece, Set[str]]
) -> Iterator[tuple[Piece, dict[str, Tensor]]]:
    """The verdicts [n] bool, by tag, on each of this place's pieces, as they come. done: the tags that are not lacking.

    A piece's verdicts are a function of the tag, the images and the course alone: of no device, rank or earlier run.
    """
    tags, key = networks.sitting.tags, Key(course.seed)
    whole = {at for at, there in done.items() if tags.keys() <= there}
    for at, batch in course.batches(data, place, whole):
        lacking = [tag for tag in tags if tag not in done.get(at, ())]
        yield at, networks.right(course.seen(batch, at[1], key) if len(batch) else batch, lacking, key)


class Minutes:
    """Verdicts of a panel that are there, in `Files`: of each piece a tensor for each tag.

    Entries may come and go, images too: what is there is taken. Of an entry whose members were trained again the old
    verdicts go when its new ones come.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], course: Course, sitting: Sitting) -> None:
        self.course, self.sitting = course, sitting
        self.counts = dict(course.pieces(sitting.data))
        self.files = Files(folder, header, self.counts)
        self.found: dict[Piece, dict[str, Tensor]] = {}
        self._images = 0  # judged, each once an entry and cell
        self._sums = {CLEAN: [0, 0], "corrupted": [0, 0]}  # right, judged
        for at, there in self.files.read():
            self._take(at, there)

    @property
    def done(self) -> dict[Piece, frozenset[str]]:
        """The tags of this panel that each piece has."""
        return {at: frozenset(there.keys() & self.sitting.tags.keys()) for at, there in self.found.items()}

    def put(self, at: Piece, right: Mapping[str, Tensor]) -> None:
        """Keep what was found on a piece."""
        self._take(at, right)
        self.files.write(at, self.found[at])

    def _take(self, at: Piece, right: Mapping[str, Tensor]) -> None:
        names = {tag.rpartition("@")[0] for tag in right}
        before = {tag: one for tag, one in self.found.get(at, {}).items() if tag.rpartition("@")[0] not in names}
        self.found[at] = before | {tag: one.contiguous() for tag, one in right.items()}
        for one in (right[tag] for tag in right.keys() & self.sitting.tags.keys()):
            sums = self._sums[CLEAN if at[1] == CLEAN else "corrupted"]
            sums[0], sums[1] = sums[0] + int(one.sum()), sums[1] + len(one)
            self._images += self.counts[at]

    @property
    def share(self) -> float:
        """Of all images, each once an entry and cell, those that were judged."""
        return self._images / max(sum(self.counts.values()) * len(self.sitting.tags), 1)

    def standing(self) -> str:
        """The accuracies so far, of all entries together: clean, and over all cells."""
        shares = [f"{name} {right / judged:.1%}" for name, (right, judged) in self._sums.items() if judged]
        return ", ".join([f"{len(self.sitting.tags)} networks", *shares])

    def robustness(self) -> dict[str, Robustness]:
        """What the verdicts come to, by entry."""
        size = self.sitting.data.shape[-1]
        return {
            entry.name: self.course.robustness({at: one[tag] for at, one in self.found.items() if tag in one}, size)
            for tag, entry in self.sitting.tags.items()
        }


Deal = Callable[..., Iterable[Any]]
"""(course, what is there) to pieces and their verdicts by tag."""


def judged_panel(
    panel: Panel,
    data: Dataset,
    course: Course,
    place: Place,
    folder: str | Path,
    deal: Callable[[Sitting], Deal] | None = None,
    tell: Tell = lambda now, share, so_far: None,
) -> dict[str, Robustness]:
    """Judge what is lacking in `folder`, and what all verdicts there come to, by the entries' names.

    Killed anywhere, the same call goes on. deal: who does the work where it is not this process alone, such as
    `lambda sitting: launch.deal.dealt(sitting, devices, gpu, address, judge)`; `place` is this process's otherwise.
    """
    data.prepare()
    sitting = panel.on(data)
    on = course.on({"data": {shard_name(url): digest for url, digest in data.checksums().items()}})
    header = {"on": course.shared(on), "chunk": course.chunk, "versions": versions()}
    minutes = Minutes(Path(folder), header, course, sitting)
    done = minutes.done
    tell("going on" if any(done.values()) else "beginning", minutes.share, minutes.standing())
    if deal is None:
        found: Iterable[Any] = judge(sitting.network(place.device), data, course, place, done)
    else:
        found = deal(sitting)(course, done)
    for at, right in found:
        minutes.put(at, right)
        tell(f"{at[1]}, chunk {at[0]}", minutes.share, minutes.standing())
    return minutes.robustness()


def _sum(folder: str) -> str:
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no manifest.json. Name a run's folder, or a checkpoint."
        )
    return checksum(path)
