"""A network from a checkpoint, a weights file or a timm name, ready to be attacked; and the images to judge it on."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from robust_train import checkpoint
from robust_train.data.files.own import labels_for
from robust_train.data.shards import Shards
from robust_train.models.blueprint import Blueprint
from robust_train.models.ensemble import Ensemble
from robust_train.models.network import Network
from robust_train.models.shapes import square
from robust_train.models.timm import Timm
from robust_train.models.weights import fit_weights, read_weights
from robust_train.nouns import Dataset, Model, Shape
from robust_train.read import uses, yaml
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import parse
from robust_train.read.registry import models
from robust_train.run import Run
from robust_train.trained import ENDINGS, is_ensemble, network_of


def load(
    path: str | Path, device: str = "cpu", averaged: bool = True, model: str | None = None, **timm: Any
) -> Network | Ensemble:
    """A network in eval mode and float32: pixels in [0, 1] to logits, for any attack.

        network = robust_train.load("runs/demo")                                # its best checkpoint, else its newest
        network = robust_train.load("runs/demo/checkpoints/00000440")
        network = robust_train.load("runs/study/ensemble.yaml")                 # several, as one
        network = robust_train.load("resnet50.safetensors", model="resnet50")   # weights of a timm model
        network = robust_train.load("resnet50", classes=10, size=64)            # random weights

    averaged: the averaged weights, where the run kept them. For timm models `classes`, `channels`, `size`, `mean` and
    `std` may be given; nothing is ever fetched. Raises CheckpointError for what is no whole checkpoint, ConfigError for
    an unknown model.
    """
    path = Path(path)
    if path.is_file() and (path.parent / "manifest.json").is_file():
        path = path.parent  # the weights of a checkpoint: the run beside them says what they are of
    if path.is_file() and not is_ensemble(path):
        if model is None:
            raise ConfigError(f"{path} says no model: name the timm model that its weights are of, model='resnet50'")
        return of_timm(model, device, str(path), **timm)
    if not path.exists() and path.name == str(path) and path.suffix not in ENDINGS:
        return of_timm(str(path), device, **timm)
    if model is not None or timm:
        given = ", ".join(([] if model is None else ["model"]) + list(timm))
        raise ConfigError(f"{path} is no weights file, so {given} cannot be said of it: a checkpoint knows its model")
    return network_of(path, device, averaged)


def run_of(path: str | Path) -> Run:
    """The run that a checkpoint was saved with."""
    path = Path(path)
    folder = checkpoint.find(path.parent if path.is_file() else path)
    if not (folder / "run.yaml").is_file():
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no run.yaml. Name a run's folder, or a checkpoint in it."
        )
    return Run.load(folder / "run.yaml")


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
    blueprint = Blueprint(Timm(name, weights=weights), mean=mean, std=std)
    return blueprint.build(classes, (channels, size, size), "fp32", 1).to(device).eval()


def of_model(
    said: str, device: str = "cpu", weights: str | None = None, classes: int = 1000, shape: Shape = (3, 224, 224)
) -> Network:
    """The network that a command line names: a timm model, a registered one, or one of a user's own function.

        resnet50    {use: small-cnn, widths: [8, 16]}    my_lab.nets:make    {use: half-cnn} of --uses my_lab.nets

    A function is called with no argument, and gives an nn.Module from images in [0, 1] to logits. weights: a local
    file; where there is none the function's own, else random ones. In eval mode. Raises ConfigError.
    """
    module, colon, name = said.partition(":")
    if colon and "{" not in said:
        uses.bring([module], f"--model {said}")
        make = getattr(import_module(module), name, None)
        if make is None:
            raise ConfigError(f"--model {said}: {module} has no {name}")
        made = make() if callable(make) else make
        if not isinstance(made, nn.Module):
            raise ConfigError(f"--model {said}: {module}.{name} gives no nn.Module ({type(made).__name__})")
        network = Network(made, classes, group=1)
    elif "{" in said or said in models:
        tree = yaml.read(said) if "{" in said else {"use": said}
        network = Blueprint(parse(Model, tree, "model", "--model")).build(classes, shape, "fp32", 1)  # type: ignore[type-abstract]
    else:
        return of_timm(said, device, weights, classes, shape[0], shape[-1])
    if weights is not None:
        fit_weights(network.model, read_weights(Path(weights)), weights)
    return network.to(device).eval()


def brought_by(said: str) -> list[str]:
    """The modules of a user's own that a model of this name may come from."""
    module, colon, _ = said.partition(":")
    if colon and "{" not in said:
        return [module]
    tree = yaml.read(said) if "{" in said else {"use": said}
    kind = models.get(str(tree.get("use")))
    return [] if kind is None or kind.__module__.startswith("robust_train.") else [kind.__module__]


def validation_of(data: Dataset, url: str | None = None) -> Dataset:
    """The data set with its validation images alone, or those at `url`: training shards need not be there."""
    data = getattr(data, "task", data)  # of two sets at once, the one that is judged
    if url is None and hasattr(data, "shards"):  # digits: written as shards where they are not there yet
        data.prepare()
        data = data.shards
    if url is None and not isinstance(data, Shards):
        return data
    where = getattr(data, "validation", None) if url is None else url
    if where is None:
        raise ConfigError("the run names no validation shards: name some, such as --data 'val-*.tar'")
    if isinstance(data, Shards):
        labels_for(where, data.train)  # refuses other classes than the run's, where these are still known
        return replace(data, train=where, validation=where, reader="indexed")
    channels, size = square(data.shape, "--data")
    known = {field.name for field in fields(Shards)} - {"train", "validation", "augment", "size", "channels"}
    same = {name: getattr(data, name) for name in known if hasattr(data, name)}
    return Shards(train=where, validation=where, size=size, channels=channels, **same)  # type: ignore[arg-type]
