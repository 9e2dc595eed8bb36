"""What is judged: a checkpoint or a timm model, and the images it is judged on, as a value that travels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_train import checkpoint
from robust_train.data.manifest import shard_name
from robust_train.data.shards import Shards
from robust_train.evaluate.shifts import preprocessing
from robust_train.loading import load, of_timm, run_of, validation_of
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.nouns import Dataset, Threat, at
from robust_train.read.errors import ConfigError
from robust_train.run import Run


@dataclass(frozen=True)
class Subject:
    """A network and its images. Any process that reaches the same files makes the same of it."""

    checkpoint: str | None = None  # a run's folder (its best checkpoint, else its newest) or a checkpoint
    model: str | None = None  # instead: a timm model by name, with local weights
    weights: str | None = None
    classes: int = 1000  # of a timm model
    size: int = 224  # side of its images
    crop: float | None = None  # middle share of them; None: the model's own, as timm says it
    averaged: bool = True  # the averaged weights, where the run kept them
    data: str | None = None  # shards; None: the run's validation images
    listed: str | None = None  # file of image names, one a line: those alone

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("name a checkpoint, or a timm model by --model")

    def network(self, device: str = "cpu") -> Network | Ensemble:
        """In eval mode and float32."""
        if self.model is not None:
            return of_timm(self.model, device, self.weights, self.classes, size=self.size)
        assert self.checkpoint is not None
        return load(self.checkpoint, device, self.averaged)

    def images(self) -> Dataset:
        """The data set whose validation images are judged, prepared."""
        run, url = self.run, self.data
        if run is not None:
            found = validation_of(run.data, url)
        elif url is None:
            raise ConfigError("--model needs --data too: there is no run to take images from")
        else:
            own = preprocessing(of_timm(str(self.model), classes=self.classes, size=self.size))
            own |= {} if self.crop is None else {"crop": self.crop}
            found = Shards(train=url, validation=url, classes=self.classes, size=self.size, **own)
        if self.listed is not None:
            if not isinstance(found, Shards):
                raise ConfigError(
                    f"--list takes images out of shards, and these are {type(found).__name__}: leave it out"
                )
            found = replace(found, listed=self.listed)
        found.prepare()
        return found

    @property
    def run(self) -> Run | None:
        """The run that a checkpoint was saved with."""
        return None if self.checkpoint is None else run_of(self.checkpoint)

    @property
    def threat(self) -> Threat | None:
        """The threat model that the run was judged or trained in, as in its last update; None where there is none."""
        run = self.run
        if run is None:
            return None
        attacks = (run.validate.final, run.validate.attack, getattr(run.objective, "attack", None))
        return next((at(attack.threat, run.updates - 1, run.updates) for attack in attacks if attack is not None), None)

    @property
    def source(self) -> str:
        """The file or folder that the weights came from."""
        return str(self.weights or checkpoint.find(self.checkpoint or ""))

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.model or self.source

    @property
    def home(self) -> Path:
        """The folder of the run that a checkpoint belongs to; for a timm model runs/NAME below the working folder."""
        if self.checkpoint is None:
            return Path("runs") / str(self.model)
        path = Path(self.checkpoint)
        path = path.parent if path.is_file() else path
        return path.parent.parent if path.parent.name == "checkpoints" else path

    @property
    def picked(self) -> bool:
        """Whether the weights are those that did best in the run's validation, on the very images that are judged."""
        if self.checkpoint is None or self.data is not None:
            return False
        folder = checkpoint.find(self.checkpoint)
        return checkpoint.best(folder.parent.parent) == folder

    def identity(self, data: Dataset) -> dict[str, Any]:
        """What its verdicts are a function of: checksums of weights and images. Reads the weights once."""
        shards = {shard_name(url): digest for url, digest in data.checksums().items()}
        own = {"weights": checksum(Path(self.source)), "averaged": self.averaged, "model": self.model, "data": shards}
        return own if self.listed is None else {**own, "listed": checksum(Path(self.listed))}

    def at(self, folder: str) -> Subject:
        """The same, its relative paths taken from `folder`: for another process."""

        def of(path: str | None) -> str | None:
            return str(Path(folder) / path) if path and Path(path).exists() else path

        return replace(
            self, checkpoint=of(self.checkpoint), weights=of(self.weights), data=of(self.data), listed=of(self.listed)
        )


def checksum(path: Path) -> str:
    """sha256 of a weights file, or of all weights of a checkpoint, by its manifest."""
    file = path / "manifest.json" if path.is_dir() else path
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
