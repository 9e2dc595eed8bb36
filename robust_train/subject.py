"""What is judged: a checkpoint or a timm model, and the images it is judged on, as a value that travels."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from robust_train import checkpoint, disk, fingerprint
from robust_train.data.manifest import shard_name
from robust_train.data.shards import Shards
from robust_train.door.identity import of_network
from robust_train.evaluate.shifts import preprocessing
from robust_train.fingerprint import checksum
from robust_train.keyed.mode import Noisy
from robust_train.loading import brought_by, load, of_model, run_of, validation_of
from robust_train.models.blueprint import Recipe
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.models.noise import draws, settle
from robust_train.models.shapes import square
from robust_train.nouns import Dataset, Shape, Threat, at
from robust_train.read import uses
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.trained import Members, home_of, is_ensemble, named_by, recipe_of


@dataclass(frozen=True)
class Subject:
    """A network, or several as one, and its images. Any process that reaches the same files makes the same of it."""

    checkpoint: str | None = None  # a run's folder (its best, else its newest), a checkpoint, an ensemble's file
    model: str | None = None  # instead: a model as loading.of_model reads it, with local weights
    weights: str | None = None
    classes: int = 1000  # of a timm model
    size: int = 224  # side of its images
    channels: int = 3  # of its images
    crop: float | None = None  # middle share of them; None: the model's own, as timm says it
    averaged: bool = True  # the averaged weights, where the run kept them
    data: str | None = None  # shards; None: the run's validation images
    listed: str | None = None  # file of image names, one a line: those alone
    noise: Noisy = "drawn"  # of the network itself: as in training; fixed: one draw for all images; off

    harmless: ClassVar[tuple[str, ...]] = ("checkpoint", "weights", "data", "listed")  # what they lead to counts

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("name a checkpoint, or a model by --model")

    def network(self, device: str = "cpu") -> Network | Ensemble:
        """In eval mode and float32, its noise as asked for. ConfigError where it has none to be fixed or off."""
        if self.model is not None:
            made: Network | Ensemble = of_model(self.model, device, self.weights, self.classes, self.shape)
        else:
            assert self.checkpoint is not None
            made = load(self.checkpoint, device, self.averaged)
        if self.noise != "drawn":
            settle(made, self.noise, self.shape)
        return made

    @property
    def shape(self) -> Shape:
        """Of an image."""
        recipe = self.recipe
        return (self.channels, self.size, self.size) if recipe is None else recipe.shape

    def noise_of(self, network: Network | Ensemble) -> Noisy | None:
        """How the noise of its network is treated; None where it has none."""
        return self.noise if self.noise != "drawn" or draws(network, self.shape) else None

    def images(self) -> Dataset:
        """The data set whose validation images are judged, prepared."""
        run, recipe, url = self.run, self.recipe, self.data
        own: dict[str, Any]
        if run is not None:
            found = validation_of(run.data, url)
        elif url is None:
            named = "--model" if recipe is None else f"{self.title} has no run.yaml and"
            raise ConfigError(f"{named} needs --data too: there is no run to take images from")
        elif recipe is not None:
            channels, size = square(recipe.shape, "--data")
            own = {"classes": recipe.classes, "size": size, "channels": channels}
            own |= {} if self.crop is None else {"crop": self.crop}
            found = Shards(train=url, validation=url, **own)
        else:
            own = preprocessing(of_model(str(self.model), "cpu", None, self.classes, self.shape))
            own |= {"classes": self.classes, "size": self.size, "channels": self.channels}
            own |= {} if self.crop is None else {"crop": self.crop}
            found = Shards(train=url, validation=url, **own)
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
        """The run that a checkpoint was saved with; of an ensemble its first member's. None where it is not known."""
        if self.checkpoint is None:
            return None
        folder = self.checkpoints[0]
        alone = (folder / "network.yaml").is_file() and not (folder / "run.yaml").is_file()
        return None if alone else run_of(folder)

    @property
    def recipe(self) -> Recipe | None:
        """How the network of a checkpoint is built; of an ensemble its first member's."""
        return None if self.checkpoint is None else recipe_of(self.checkpoints[0])

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoint, or those of an ensemble's members; none for a timm model."""
        named = () if self.checkpoint is None else named_by(self.checkpoint)
        return tuple(checkpoint.find(Path(one).parent if Path(one).is_file() else one) for one in named)

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
        """The file or folder that the weights came from; of an ensemble its file."""
        if self.checkpoint is not None and is_ensemble(self.checkpoint):
            return self.checkpoint
        return str(self.weights or self.model or checkpoint.find(self.checkpoint or ""))

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.model or self.source

    @property
    def home(self) -> Path:
        """The folder of the run that a checkpoint belongs to; for a timm model runs/NAME below the working folder.

        For an ensemble a folder beside its file, named like it.
        """
        if self.checkpoint is not None:
            return home_of(self.checkpoint)
        return Path("runs") / "".join(c if c.isalnum() or c in "_.-" else "-" for c in str(self.model)).strip("-")

    @property
    def picked(self) -> bool:
        """Whether the weights are those that did best in the run's validation, on the very images that are judged.

        Of an ensemble: whether any member's are.
        """
        if self.data is not None:
            return False
        return any(checkpoint.best(folder.parent.parent) == folder for folder in self.checkpoints)

    def fitted_on(self, data: Dataset) -> bool:
        """Whether the shares of an ensemble's members were fitted on images of these shards."""
        if self.checkpoint is None or not is_ensemble(self.checkpoint):
            return False
        seen = (Members.load(Path(self.checkpoint)).fitted or {}).get("data", {})
        return not set(seen.values()).isdisjoint(data.checksums().values())

    @property
    def digest(self) -> str:
        """sha256 of the weights: of a file, of a checkpoint's manifest; of an ensemble of its file and its members'."""
        if self.checkpoint is None and self.weights is None:  # a function gives it with its weights
            return of_network(self.network())
        own = checksum(Path(self.source))
        if self.checkpoint is None or not is_ensemble(self.checkpoint):
            return own
        whole = " ".join([own, *(checksum(folder) for folder in self.checkpoints)])
        return disk.digest(whole)

    def networks(self, device: str = "cpu") -> dict[str, Network | Ensemble]:
        """What evaluators judge: the network by its name."""
        return {self.title: self.network(device)}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What its verdicts are a function of beside images and plan. Reads the weights once."""
        return {self.title: fingerprint.digest(self)}

    def contents(self) -> dict[str, Any]:
        """What the paths lead to."""
        return {"weights": self.digest, "uses": self.brought, "helpers": self._helpers}

    @property
    def _helpers(self) -> dict[str, dict[str, str]]:
        """What the user's own modules import, however deep, that is not installed."""
        files = {name: getattr(sys.modules.get(name), "__file__", None) for name in self._uses}
        return {name: fingerprint.sources(Path(file)) for name, file in files.items() if file}

    @property
    def brought(self) -> dict[str, str]:
        """{path: sha256} of the user's own modules that its network, or any member of an ensemble, is built from."""
        return uses.checksums(self._uses) if self._uses else {}

    @property
    def _uses(self) -> list[str]:
        """The user's own modules, by name."""
        names = [name for folder in self.checkpoints for name in recipe_of(folder).uses]
        return list(dict.fromkeys([*names, *(() if self.model is None else brought_by(self.model))]))

    def identity(self, data: Dataset | None) -> dict[str, Any]:
        """What a report says it is of: checksums of weights and images, and how the images were made ready."""
        own: dict[str, Any] = {"weights": self.digest, "averaged": self.averaged, "model": self.model}
        if data is not None:
            own["data"] = {shard_name(url): digest for url, digest in data.checksums().items()}
            fields = fingerprint.tree(data).items()
            own["prepared"] = {name: value for name, value in fields if name not in ("is", "contents")}
            own["preprocessing"] = data.preprocessing()
        own |= {} if self.listed is None else {"listed": checksum(Path(self.listed))}
        own |= {"uses": self.brought} if self.brought else {}
        return own if self.noise == "drawn" else {**own, "noise": self.noise}

    def at(self, folder: str) -> Subject:
        """The same, its relative paths taken from `folder`: for another process."""

        def of(path: str | None) -> str | None:
            return str(Path(folder) / path) if path and Path(path).exists() else path

        return replace(
            self, checkpoint=of(self.checkpoint), weights=of(self.weights), data=of(self.data), listed=of(self.listed)
        )


@dataclass(frozen=True)
class Several:
    """Networks by name that are judged together, on the images of the first."""

    each: dict[str, Subject]

    def at(self, folder: str) -> Several:
        """The same, its relative paths taken from `folder`: for another process."""
        return Several({name: subject.at(folder) for name, subject in self.each.items()})

    def networks(self, device: str = "cpu") -> dict[str, Network | Ensemble]:
        """All of them."""
        return {name: subject.network(device) for name, subject in self.each.items()}

    def images(self) -> Dataset:
        """The first one's, prepared."""
        return next(iter(self.each.values())).images()

    @property
    def fingerprints(self) -> dict[str, str]:
        """What the verdicts of each are a function of."""
        return {name: fingerprint.digest(subject) for name, subject in self.each.items()}
