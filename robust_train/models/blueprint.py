"""Blueprint: how a network is made, as the run says it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.keyed.mode import Precision
from robust_train.models.network import Network
from robust_train.nouns import Edit, Model, Shape
from robust_train.read.errors import ConfigError, nearest


@dataclass(frozen=True)
class Blueprint:
    """A model, what is changed in it, and what stands around it: normalisation, BatchNorm groups, checkpointing."""

    model: Model  # the model itself: {use: timm, name: resnet18}, {use: small-cnn}, ...
    edits: tuple[Edit, ...] = ()  # changes of it, in this order: [{use: v1, ...}, {use: activation, name: softplus}]
    mean: tuple[float, ...] | None = None  # subtracted from pixels, a number a channel; null: an edit's, the model's
    std: tuple[float, ...] | None = None  # pixels are divided by it after that; null: an edit's or the model's, or 1
    trained: tuple[str, ...] | None = (
        None  # layers or tensors that are trained, all else stays: [layer4, fc]; null: all
    )
    group: int = 32  # consecutive images that share BatchNorm statistics: a paper's per-device batch
    checkpointing: bool = False  # recompute each block in the backward: less memory, one forward more an update
    channels_last: bool = False  # memory layout of images: faster convolutions on most devices

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it counts images that share statistics")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive: pixels are divided by it")
        if self.trained == ():
            raise ValueError("trained=[] trains nothing: name layers, or null for all")

    def build(self, classes: int, shape: Shape, precision: Precision, batch: int) -> Network:
        """The network for samples [B, *shape]; mean and std are numbers a channel, the first of the last three axes.

        ConfigError names the edit that cannot be made.
        """
        model = self.model.build(classes, shape)
        stages = tuple(self.model.stages(model))
        for index, edit in enumerate(self.edits):
            try:
                edit(model, shape, classes)
            except ConfigError as error:
                raise ConfigError(f"run.network.edits[{index}] ({edit.use}): {error}") from error
        self._freeze(model)
        layers = {name for name, _ in model.named_modules()}
        mean, std = self._normalisation(model, shape[-3])
        network = Network(
            model,
            classes,
            mean,
            std,
            min(self.group, batch),
            precision,
            self.channels_last,
            tuple(name for name in stages if name in layers),
        )
        for norm in network.batchnorms:  # those without parameters too
            norm.frozen = norm.frozen or not self._trains(norm.name)
        if self.checkpointing:
            from robust_train.models.checkpointing import checkpoint_blocks

            checkpoint_blocks(network.model, network.held)
        return network

    def bare(self) -> Blueprint:
        """Without the weights file that the model began with, and without what only training asks for."""
        held = getattr(self.model, "weights", None) is None
        model = self.model if held else replace(self.model, weights=None)  # type: ignore[type-var]
        return replace(self, model=model, checkpointing=False, trained=None)

    def _trains(self, name: str) -> bool:
        """Whether a layer or tensor is, or lies in, what `trained` names."""
        return self.trained is None or any(f"{name}.".startswith(f"{prefix}.") for prefix in self.trained)

    def _freeze(self, model: nn.Module) -> None:
        """No gradient for what `trained` does not name. ConfigError for a name of nothing that could be trained."""
        every = model.named_parameters(remove_duplicate=False)  # a tied weight trains if any of its names does
        trainable = {name: parameter for name, parameter in every if parameter.requires_grad}
        for prefix in self.trained or ():
            if not any(f"{name}.".startswith(f"{prefix}.") for name in trainable):
                known = {".".join(name.split(".")[:depth]) for name in trainable for depth in range(1, 9)}
                raise ConfigError(
                    f"run.network.trained: {prefix!r} names nothing that is trained{nearest(prefix, sorted(known))} "
                    f"(the model has {', '.join(dict.fromkeys(name.partition('.')[0] for name in trainable))})"
                )
        trained = {parameter for name, parameter in trainable.items() if self._trains(name)}
        for parameter in trainable.values():
            parameter.requires_grad_(parameter in trained)

    def _normalisation(self, model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        chosen = []
        for name, given in (("mean", self.mean), ("std", self.std)):
            values = given if given is not None else next(self._wishes(model, name))
            if len(values) not in (1, channels):
                if given is not None:
                    raise ConfigError(
                        f"run.network.{name}: {len(values)} numbers for images of {channels} channels; "
                        f"give {channels}, or 1"
                    )
                values = (sum(values) / len(values),)
            chosen.append(values)
        return chosen[0], chosen[1]

    def _wishes(self, model: nn.Module, name: str) -> Iterator[tuple[float, ...]]:
        """What the edits, last to first, and the model itself want for `name`; at the end what changes nothing."""
        yield from (wish for edit in reversed(self.edits) if (wish := getattr(edit, name)) is not None)
        own: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        if name in own:
            yield tuple(own[name])
        yield (0.0,) if name == "mean" else (1.0,)


@dataclass(frozen=True)
class Recipe:
    """All that a network is built from, without the run that trained it and its data set: network.yaml of a checkpoint.

    Weights come from elsewhere.
    """

    network: Blueprint  # with mean and std as they are: no other version of a library decides them
    classes: int  # logits
    shape: tuple[int, ...]  # of a sample: (channels, height, width) of an image
    uses: tuple[str, ...] = ()  # modules of the user's own that are imported first

    @classmethod
    def of(cls, blueprint: Blueprint, network: Network, shape: Shape, uses: tuple[str, ...] = ()) -> Recipe:
        """What builds `network` again, which `blueprint` built for samples of `shape`."""
        mean, std = (tuple(numbers(values, shape[-3])) for values in (network.mean, network.std))
        said = replace(blueprint.bare(), mean=mean, std=std, group=network.group)
        return cls(said, network.classes, tuple(shape), uses)

    def build(self) -> Network:
        """The network in float32, randomly initialised; the global generator stays as it was."""
        with torch.random.fork_rng():
            return self.network.build(self.classes, self.shape, "fp32", self.network.group)


def numbers(values: Tensor, channels: int) -> list[float]:
    """A number a channel, as short as float32 is told apart by: 0.4914, not 0.49140000343."""
    return [float(str(value)) for value in values.detach().cpu().float().flatten().expand(channels).numpy()]
