"""Run: a whole run as a value. Everything that decides a result stands in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from robust_train.epochs import in_updates
from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint, Recipe
from robust_train.models.network import Network
from robust_train.nouns import Batch, Dataset, Mixing, Objective, Place
from robust_train.read import overrides, uses
from robust_train.read.errors import ConfigError
from robust_train.read.parse import dump, load_tree, parse
from robust_train.read.paths import FilePath, place, run_file, word
from robust_train.settings.average import Average
from robust_train.settings.cluster import Cluster
from robust_train.settings.execution import Execution, Guard
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.tracking import Tracking
from robust_train.settings.validate import Validate

if TYPE_CHECKING:
    from os import PathLike


@dataclass(frozen=True)
class Run:
    """A run: data, network, objective and how long. `python -m launch.train RUN.yaml` does it."""

    data: Dataset  # where images come from, and how they are augmented
    network: Blueprint  # what is trained
    objective: Objective  # what each update minimises
    updates: int  # optimiser steps of the whole run; `20 epochs` says it too, here and wherever updates are counted
    batch: int  # images an update, over all devices: the contract; micro-batches and accumulation follow from it
    changed_data: Literal["refuse", "accept"] = "refuse"  # when it goes on with other data than its checkpoint knew
    uses: tuple[str, ...] = ()  # modules of your own, imported before the rest is read: [my_lab.half]
    name: str = "run"  # what the run is called in W&B and tables
    folder: FilePath = "runs/run"  # the folder that everything it writes goes to
    seed: int = 0  # decides every random number
    branch: FilePath | None = None  # a run's folder or checkpoint to go on from: optimiser, average, state, position
    start: FilePath | None = None  # a checkpoint, or a weights file, to begin from; another head is allowed
    mixing: Mixing | None = None  # mixup or cutmix of each batch before the objective; null: none
    optimiser: Optimiser = field(default_factory=Optimiser)  # how gradients become steps
    average: Average | None = None  # an exponential average of the weights; null: none
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast inside the network; weights and losses stay float32
    engine: Execution = field(default_factory=Execution)  # how updates are computed; never changes the numbers
    compile: bool = False  # torch.compile of the network: slower to start, faster on GPUs
    deterministic: bool = True  # bit-equal repetition on CUDA too, at some cost of speed
    on_nonfinite: Guard = field(default_factory=Guard)  # what a loss that is not finite leads to
    validate: Validate = field(default_factory=Validate)  # accuracy on the validation images
    checkpoint: Keep = field(default_factory=Keep)  # when checkpoints are written, which are kept
    records: Tracking = field(default_factory=Tracking)  # progress, W&B, pictures
    cluster: Cluster = field(default_factory=Cluster)  # how many devices when Ray starts it

    def __post_init__(self) -> None:
        for name in ("updates", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.branch is not None and self.start is not None:
            raise ValueError("branch goes on from a checkpoint and start begins from one: say one of them")
        mixed, own = getattr(self.mixing, "smoothing", 0.0), getattr(self.objective, "smoothing", 0.0)
        if mixed and own:
            raise ValueError(
                f"mixing.smoothing={mixed} and objective.smoothing={own} would both smooth the "
                "targets: set one of them to 0"
            )

        if (kept := getattr(self.objective, "batch", self.batch)) != self.batch:
            raise ValueError(
                f"objective.batch={kept} keeps so many images, and batch={self.batch}: say one number twice"
            )

    @classmethod
    def load(cls, source: str | PathLike[str], changes: list[str] | None = None) -> Run:
        """The run that a YAML file (or text) says, with key=value changes; every mistake at once as ConfigError.

        The run.yaml of a run's folder, or of a checkpoint in it, says the run of that folder, wherever it is by now.
        """
        text = isinstance(source, str) and "\n" in source
        source = source if text else run_file(source)
        tree = load_tree(str(source) if text else Path(source))
        moved = None if text else kept_in(Path(source))
        tree = tree if moved is None else {**tree, "folder": str(moved)}
        return cls.of(overrides.apply(tree, changes or []), "run", None if text else str(source))

    @classmethod
    def of(cls, tree: dict[str, Any], where: str = "run", source: str | None = None) -> Run:
        """The run that a tree says; `N epochs` in it become updates. Raises ConfigError."""
        if "uses" in tree:
            uses.bring(tree["uses"], source)  # its data set may be one of theirs
        return parse(cls, in_updates(tree), where, source)

    def dump(self) -> str:
        """The whole run as YAML: `Run.load(run.dump()) == run`."""
        return dump(self)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(word(self.folder))

    def build(self, device: torch.device) -> Network:
        """The network, initialised from the seed alone, on the device."""
        with torch.random.fork_rng():
            torch.manual_seed(Key(self.seed).of("weights").seed % 2**63)
            data = self.data
            network = self.network.build(data.classes, data.shape, self.precision, self.batch)
        return network.to(device)

    def recipe(self, network: Network) -> Recipe:
        """What builds the run's network again where neither the run nor its data set is."""
        return Recipe.of(self.network, network, self.data.shape, self.uses)

    def batches(self, place: Place, start: int) -> Iterator[Batch]:
        """This rank's share of each global batch from update `start` on, uint8."""
        return self.data.batches(place, self.batch, self.seed, start)

    def mix(self, batch: Batch, key: Key) -> Batch:
        """The batch with its images mixed, where the run says so."""
        if self.mixing is None:
            return batch
        held = {"extra": batch.extra, "views": batch.views, "beside": batch.beside}
        if stranger := next((name for name, value in held.items() if value and name not in self.mixing.carries), None):
            raise ConfigError(
                f"mixing.use={self.mixing.use} cannot say what becomes of {stranger} where images are mixed: set "
                f"mixing=null, or leave out what data says of {stranger}."
            )
        return self.mixing(batch, key.of("mixing"), self.data.classes)

    def unit(self) -> int:
        """Consecutive positions that no micro-batch may cut: whole BatchNorm groups and whole mixing groups."""
        mixing = 1 if self.mixing is None else self.mixing.group
        return math.lcm(min(self.network.group, self.batch), self.objective.groups(), mixing)


def kept_in(file: Path) -> Path | None:
    """The folder of the run that wrote this run.yaml; None where a person did, or where the file names it already."""
    if file.name != "run.yaml":
        return None
    holds = file.parent.parent
    folder = holds.parent if holds.name == "checkpoints" else file.parent
    if not any((folder / name).exists() for name in ("checkpoints", "metrics.jsonl")):
        return None
    said = load_tree(file).get("folder")
    try:
        named = isinstance(said, str) and Path(place(said)) == Path(place(folder))
    except ValueError:  # a variable of another machine
        named = False
    return None if named else folder
