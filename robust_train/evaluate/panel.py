"""Many networks and ensembles of them judged under corruptions at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_train import checkpoint
from robust_train.evaluate.corruption_work import Course, Verdict, Voice
from robust_train.evaluate.corruptions import Robustness
from robust_train.evaluate.store import Store
from robust_train.evaluate.work import Deal, Tell, evaluate, silent
from robust_train.fingerprint import checksum
from robust_train.models.ensemble import Mean
from robust_train.nouns import Dataset
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.trained import Members, is_ensemble, network_of


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
        found = [(one, tuple(at[path] for path in one.members)) for one in self.entries]
        names = {members[0]: one.name for one, members in reversed(found) if len(members) == 1}
        for one, members in found:
            for index, folder in enumerate(members):
                names.setdefault(folder, f"{one.name}/{index}")
        voices = tuple(
            Voice(one.name, members, tuple(names[folder] for folder in members), Verdict(one.mean, one.shares))
            for one, members in found
        )
        return Sitting(voices, {folder: _sum(folder) for folder in names}, data)


@dataclass(frozen=True)
class Sitting:
    """A panel before its images, as a value that travels: any process that reaches the same files makes the same of it.

    A checkpoint's stream of noise is called after the first entry that is it alone, else ENTRY/INDEX.
    """

    voices: tuple[Voice, ...]  # networks by absolute folder
    fingerprints: Mapping[str, str]  # of each folder, the checksum of its manifest
    data: Dataset

    def at(self, folder: str) -> Sitting:
        """The same: its checkpoints are absolute."""
        return self

    def networks(self, device: str = "cpu") -> Networks:
        """The networks by their folders."""
        return Networks(self.fingerprints, device)

    def images(self) -> Dataset:
        """The data set whose validation images are judged, prepared."""
        self.data.prepare()
        return self.data


class Networks(Mapping[str, Any]):
    """Checkpoints on one device, each loaded when it is first asked."""

    def __init__(self, fingerprints: Mapping[str, str], device: str) -> None:
        self._fingerprints, self._device = fingerprints, device
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, folder: str) -> Any:
        if folder not in self._loaded:
            network = network_of(folder, self._device)
            if _sum(folder) != self._fingerprints[folder]:
                raise CheckpointError(f"{folder} was written anew while it was judged. Give the same command again.")
            self._loaded[folder] = network
        return self._loaded[folder]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fingerprints)

    def __len__(self) -> int:
        return len(self._fingerprints)


def judged_panel(
    panel: Panel,
    data: Dataset,
    course: Course,
    folder: str | Path,
    seed: int = 0,
    device: str = "cpu",
    deal: Callable[[Sitting], Deal] | None = None,
    tell: Tell = silent,
) -> dict[str, Robustness]:
    """Judge what is lacking in `folder`, and what all verdicts there come to, by the entries' names.

    Killed anywhere, the same call goes on; entries, images and corruptions may come and go. deal: who does the work
    where it is not this process alone, such as `lambda sitting: launch.deal.dealt(sitting, devices, gpu, address)`.
    """
    data.prepare()
    sitting = panel.on(data)
    course = replace(course, voices=sitting.voices)
    store = Store(Path(folder), sitting.fingerprints)
    dealt = None if deal is None else deal(sitting)
    found = evaluate(course, sitting.networks(device), data, seed, device, store, dealt, tell)
    return {voice.name: course.robustness(found, voice.name) for voice in sitting.voices}


def _sum(folder: str) -> str:
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no manifest.json. Name a run's folder, or a checkpoint."
        )
    return checksum(path)
