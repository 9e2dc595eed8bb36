"""Trained networks as they lie on disk: a run's checkpoint, or a file that makes an ensemble of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train import checkpoint
from robust_train.models.blueprint import Recipe
from robust_train.models.ensemble import Ensemble, Mean
from robust_train.models.network import Network
from robust_train.models.shapes import written
from robust_train.models.weights import fit_weights, read_weights
from robust_train.nouns import Place, Shape
from robust_train.read import uses
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import dump, load_tree, parse
from robust_train.read.paths import FilePath

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Members:
    """An ensemble, as a YAML file says it."""

    members: tuple[FilePath, ...]  # checkpoints, or folders of runs; relative to the file
    mean: Mean = "logits"  # of logits, or of probabilities
    weights: tuple[float, ...] | None = None  # a share each, together 1; null: equal ones
    fitted: dict[str, Any] | None = None  # how the weights were found, where they were

    @classmethod
    def load(cls, path: Path) -> Members:
        """The ensemble of a file, its members' paths as they are from here."""
        found = parse(cls, load_tree(path), "ensemble", str(path))
        if not found.members:
            raise ConfigError(f"{path} names no members: give it checkpoints, members: [runs/a, runs/b]")
        here = tuple(str(path.parent / member) for member in found.members)
        return cls(here, found.mean, found.weights, found.fitted)

    def dump(self) -> str:
        """As YAML; members as they stand."""
        return dump(self)


def network_of(path: str | Path, device: torch.device | str = "cpu", averaged: bool = True) -> Network | Ensemble:
    """The network of a checkpoint (of a run's folder its best, else its newest), or the ensemble of a YAML file.

    In eval mode and float32. averaged: the averaged weights, where the run kept them. CheckpointError for what is no
    whole checkpoint.
    """
    path = Path(path)
    if is_ensemble(path):
        found = Members.load(path)
        return together(path, found.members, found.mean, found.weights, device, averaged)
    folder = checkpoint.find(path)
    checkpoint.verify(folder)
    network = recipe_of(folder).build()
    fit_weights(network.model, _weights(folder, averaged), str(folder))
    return network.to(device).eval()


def weights_of(path: str | Path, averaged: bool = True) -> dict[str, Tensor]:
    """{name: tensor} of a checkpoint, or of a weights file.

    A run's folder means its best checkpoint, else its newest. averaged: the averaged weights, where the run kept them.
    CheckpointError for what is no whole checkpoint or file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return read_weights(path)
    folder = checkpoint.find(path)
    checkpoint.verify(folder)
    return _weights(folder, averaged)


def _weights(folder: Path, averaged: bool) -> dict[str, Tensor]:
    weights = checkpoint.read(folder, "weights")
    if averaged:
        weights |= {name: value.to(weights[name].dtype) for name, value in checkpoint.read(folder, "average").items()}
    return weights


def together(
    path: Path,
    members: Sequence[str],
    mean: Mean,
    weights: Sequence[float] | None,
    device: torch.device | str = "cpu",
    averaged: bool = True,
) -> Ensemble:
    """The ensemble of some checkpoints, in eval mode; path: of its file, for messages."""
    networks: list[Any] = [network_of(folder, device, averaged) for folder in checkpoints_of(path, members)]
    try:
        return Ensemble(networks, mean, weights).to(device).eval()
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def is_ensemble(path: str | Path) -> bool:
    """Whether a path names an ensemble's file."""
    return Path(path).suffix in ENDINGS and Path(path).is_file()


def named_by(path: str | Path) -> tuple[str | Path, ...]:
    """What a path names: the members of an ensemble's file, or itself."""
    return Members.load(Path(path)).members if is_ensemble(path) else (path,)


def home_of(path: str | Path) -> Path:
    """Where what is found of a network goes: its run's folder; of an ensemble one beside its file, named like it."""
    path = Path(path)
    if is_ensemble(path):
        return path.with_suffix("")
    path = path.parent if path.is_file() else path
    return path.parent.parent if path.parent.name == "checkpoints" else path


def checkpoints_of(path: Path, members: Sequence[str]) -> list[Path]:
    """The members' checkpoints. ConfigError where one is an ensemble itself, or takes other images than the first."""
    folders: list[Path] = []
    seen: dict[Shape, str] = {}
    for member in members:
        if is_ensemble(member):
            raise ConfigError(f"{path}: its member {member} is an ensemble itself. Name that one's members instead.")
        folders.append(checkpoint.find(member))
        seen.setdefault(recipe_of(folders[-1]).shape, member)
    if len(seen) > 1:
        takes = " and ".join(f"{written(shape)} ({name})" for shape, name in seen.items())
        raise ConfigError(f"{path}: its members take images of {takes}. Name members that see the same images.")
    return folders


def recipe_of(folder: Path) -> Recipe:
    """How the network of a checkpoint is built, as its network.yaml says it: neither the run nor its data is needed."""
    said = folder / "network.yaml"
    if not said.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no network.yaml. Name a run's folder, or a checkpoint in it."
        )
    found = parse(Recipe, load_tree(said), "network", str(said))
    uses.tell(found.uses, folder)
    return found


def put(folder: Path, recipe: Recipe, weights: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write a network that no run trained as a checkpoint of its own; texts: further files."""
    brought = {f"{uses.FOLDER}/{path}": text for path, text in uses.sources(recipe.uses).items()}
    said = {**texts, **brought, "network.yaml": dump(recipe)}
    checkpoint.write(folder, {"weights.safetensors": weights}, said, Place(), lambda mine: [mine])
