"""Blueprint: how a network is made, as the run says it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robust_train.models.activations import Activation, replace_relus
from robust_train.models.front import FrontEnd, mount
from robust_train.models.network import Network, Precision
from robust_train.nouns import Model, Shape
from robust_train.read.errors import ConfigError


@dataclass(frozen=True)
class Blueprint:
    """A model, and what stands around it: normalisation, BatchNorm groups, activation, checkpointing."""

    model: Model  # the model itself: {use: timm, name: resnet18}, {use: small-cnn}, ...
    mean: tuple[float, ...] | None = None  # subtracted from pixels, a number a channel; null: the front's, the model's
    std: tuple[float, ...] | None = None  # pixels are divided by it after that; null: the front's or model's own, or 1
    front: FrontEnd | None = None  # in place of the model's stem: {use: v1, ...}; null: the model's own stem
    group: int = 32  # consecutive images that share BatchNorm statistics: a paper's per-device batch
    activation: Activation | None = None  # in place of every ReLU (softplus: beta 10); null: the model's own
    checkpointing: bool = False  # recompute each block in the backward: less memory, one forward more an update
    channels_last: bool = False  # memory layout of images: faster convolutions on most devices

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"group={self.group} must be at least 1: it counts images that share statistics")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive: pixels are divided by it")

    def build(self, classes: int, shape: Shape, precision: Precision, batch: int) -> Network:
        """The network for images [B, *shape]. mean and std are numbers a channel, the first of three axes."""
        model = self.model.build(classes, shape)
        if self.activation is not None:
            replace_relus(model, self.activation)
        if self.front is not None:
            mount(model, self.front, shape)
        mean, std = self._normalisation(model, shape[-3])
        stages = tuple(self.model.stages(model))
        network = Network(
            model,
            classes,
            mean,
            std,
            min(self.group, batch),
            precision,
            self.channels_last,
            stages,
        )
        if self.checkpointing:
            from robust_train.models.checkpointing import checkpoint_blocks

            checkpoint_blocks(network.model, network.masks, network.norms)
        return network

    def _normalisation(self, model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        own = getattr(model, "pretrained_cfg", None) or {}
        chosen = []
        for name, given, neutral in (("mean", self.mean, 0.0), ("std", self.std, 1.0)):
            if given is None and self.front is not None:
                values = getattr(self.front, name)
            else:
                values = tuple(given if given is not None else own.get(name, (neutral,) * channels))
            if len(values) not in (1, channels):
                if given is not None:
                    raise ConfigError(
                        f"run.network.{name}: {len(values)} numbers for images of {channels} channels; "
                        f"give {channels}, or 1"
                    )
                values = (sum(values) / len(values),)
            chosen.append(values)
        return chosen[0], chosen[1]
