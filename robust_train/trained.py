"""Trained networks as they lie on disk: a run's checkpoint, or a file that makes an ensemble of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robust_train import checkpoint
from robust_train.models.blueprint import Blueprint
from robust_train.models.ensemble import Ensemble, Mean
from robust_train.models.network import Network
from robust_train.models.weights import fit_weights
from robust_train.nouns import Dataset
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import dump, load_tree, parse

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Members:
    """An ensemble, as a YAML file says it."""

    members: tuple[str, ...]  # checkpoints, or folders of runs; relative to the file
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


@dataclass(frozen=True)
class Recipe:
    """What of a run decides how its network is built."""

    network: Blueprint
    data: Dataset
    batch: int


def network_of(path: str | Path, device: torch.device | str = "cpu", averaged: bool = True) -> Network | Ensemble:
    """The network of a checkpoint (of a run's folder its best, else its newest), or the ensemble of a YAML file.

    In eval mode and float32. averaged: the averaged weights, where the run kept them. CheckpointError for what is no
    whole checkpoint.
    """
    path = Path(path)
    if is_ensemble(path):
        found = Members.load(path)
        members = [network_of(member, device, averaged) for member in found.members]
        if any(isinstance(member, Ensemble) for member in members):
            raise ConfigError(f"{path}: a member is an ensemble itself: name its members instead")
        try:
            return Ensemble(members, found.mean, found.weights).to(device).eval()  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
    folder = checkpoint.find(path)
    checkpoint.verify(folder)
    recipe = recipe_of(folder)
    with torch.random.fork_rng():
        network = bare(recipe.network).build(
            recipe.data.classes, recipe.data.channels, recipe.data.size, "fp32", recipe.batch
        )
    weights = checkpoint.read(folder, "weights")
    if averaged:
        weights |= {name: value.to(weights[name].dtype) for name, value in checkpoint.read(folder, "average").items()}
    fit_weights(network.model, weights, str(folder), {})
    network.precision = "fp32"
    return network.to(device).eval()


def is_ensemble(path: str | Path) -> bool:
    """Whether a path names an ensemble's file."""
    return Path(path).suffix in ENDINGS and Path(path).is_file()


def recipe_of(folder: Path) -> Recipe:
    """What the run of a checkpoint says of its network."""
    said = folder / "run.yaml"
    if not said.is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no run.yaml. Name a run's folder, or a checkpoint in it."
        )
    tree = load_tree(said)
    return parse(Recipe, {name: tree[name] for name in ("network", "data", "batch")}, "run", str(said))


def bare(blueprint: Blueprint) -> Blueprint:
    """The blueprint without the weights file that its model began with: a checkpoint has its own."""
    model = blueprint.model
    if getattr(model, "weights", None) is None:
        return blueprint
    return replace(blueprint, model=replace(model, weights=None))  # type: ignore[type-var]
