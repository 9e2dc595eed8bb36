"""A network from a checkpoint, a weights file or a timm name, ready to be attacked."""

from __future__ import annotations

from pathlib import Path

import torch

from robust_train import checkpoint
from robust_train.engines.saved import fit_weights
from robust_train.models.blueprint import Blueprint
from robust_train.models.network import Network
from robust_train.models.timm import Timm
from robust_train.run import Run


def load(path: str | Path, device: str = "cpu", averaged: bool = True, **timm: object) -> Network:
    """The network of a checkpoint (or of a run's folder: its best, else its newest), in eval mode.

        network = robust_train.load("runs/demo")
        network = robust_train.load("resnet50", weights="resnet50.safetensors", classes=1000, size=224)

    averaged: the averaged weights where the run kept them. A path that does not exist is taken as a timm model's name;
    then `weights` (a local file), `classes`, `channels`, `size`, `mean`, `std` may be given; nothing is ever fetched.
    Raises CheckpointError for what is no whole checkpoint, ConfigError for an unknown model.
    """
    if not Path(path).exists() and not str(path).startswith((".", "/", "runs")):
        return of_timm(str(path), device, **timm)  # type: ignore[arg-type]
    folder = checkpoint.find(path)
    checkpoint.verify(folder)
    run = run_of(folder)
    network = run.build(torch.device(device))
    weights = checkpoint.read(folder, "weights")
    if averaged:
        weights |= {name: value.to(weights[name].dtype) for name, value in checkpoint.read(folder, "average").items()}
    fit_weights(network.model, weights, str(folder), {})
    return network.eval()


def run_of(path: str | Path) -> Run:
    """The run that a checkpoint was saved with."""
    return Run.load(checkpoint.find(path) / "run.yaml")


def of_timm(
    name: str,
    device: str = "cpu",
    weights: str | None = None,
    classes: int = 1000,
    channels: int = 3,
    size: int = 224,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Network:
    """A timm model by name, with weights from a local file, its own normalisation inside, in eval mode."""
    blueprint = Blueprint(Timm(name, weights=weights), mean, std)
    return blueprint.build(classes, channels, size, "fp32", 1).to(device).eval()
