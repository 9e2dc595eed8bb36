"""Network: pixels in [0, 1] to logits, with everything inside that an attack must see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.keyed.drops import Masks
from robust_train.keyed.noise import Mode, Noise, connect
from robust_train.losses import full
from robust_train.models.batchnorm import GroupedBatchNorm, Norms, group_batchnorms
from robust_train.models.drops import refuse_unkeyed, replace_drops
from robust_train.read.errors import ConfigError, nearest

Edit = Callable[[Tensor], Tensor]
Precision = Literal["fp32", "bf16"]


class Network(nn.Module):
    """A timm (or our) model with its normalisation and precision inside.

        network(images) = model((images - mean) / std)        images [B, C, H, W] in [0, 1] -> logits [B, classes]

    BatchNorm works on groups of consecutive images, dropout and stochastic depth on keyed masks:

        with network.drops(key): logits = network(images)

    Noise that is part of the network (a V1 front end's) is drawn in evaluation too, by the same key, or by one of
    its own where masks are off: `with network.noise(key)`.

    `train()` means group statistics, `eval()` running ones, as in PyTorch; `using` changes that for a while.
    The model's parameters and buffers keep timm's names; mean and std are not saved (they stand in the run).
    """

    mean: Tensor  # [channels or 1, 1, 1]
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        group: int = 32,
        precision: Precision = "fp32",
        channels_last: bool = False,
        stages: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.classes = classes
        self.stages = tuple(stages)  # names of the layers where hidden states may be mixed, first to last
        self.precision = precision
        self.channels_last = channels_last
        self.norms = Norms(group)
        self.masks = Masks()
        self.noises = Noise()
        self.attacking = False  # an attack holds the network: engines hand it the plain module
        replace_drops(model, self.masks)
        refuse_unkeyed(model)
        self.noisy = connect(model, self.noises)  # names of the layers that draw noise
        self.batchnorms: list[GroupedBatchNorm] = group_batchnorms(model, self.norms)
        self.model = model  # weights stay contiguous: DeepSpeed flattens and sends them as they lie
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, edits: Mapping[str, Edit] | None = None, taps: Sequence[str] = ()) -> Any:
        """Logits [B, classes], float32 or better. With `taps` also {name: the output of that layer, with its graph}.

        edits: {layer name: function of its output}, put in its place; "" names the input images. A tap sees what
        an edit made. Raises ConfigError for an unknown name, or a layer that gives no single tensor.
        """
        edits = edits or {}
        seen: dict[str, Tensor] = {}
        if "" in edits:
            images = edits[""](images)
        hooks = [self._layer(name).register_forward_hook(_edited(edit, name)) for name, edit in edits.items() if name]
        hooks += [self._layer(name).register_forward_hook(_tapped(seen, name)) for name in taps]
        # a compiled model looks for no hooks that came after its compilation: it would leave them out in silence
        model = self.model._call_impl if hooks else self.model
        self.norms.images = len(images)
        if self.noisy:
            self.noises.begin()
        try:
            normal = (images - self.mean) / self.std
            if self.channels_last:
                normal = normal.contiguous(memory_format=torch.channels_last)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = full(model(normal))
        finally:
            for hook in hooks:
                hook.remove()
        return (logits, seen) if taps else logits

    def _layer(self, name: str) -> nn.Module:
        try:
            return self.model.get_submodule(name)
        except AttributeError:
            known = [known for known, _ in self.model.named_modules() if known]
            raise ConfigError(f"{name!r} is no layer of {type(self.model).__name__}{nearest(name, known)}") from None

    def features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """{name: output of that layer} for layers named as in `model.named_modules()`, with their graph."""
        return self(images, taps=tuple(names))[1]

    def train(self, mode: bool = True) -> Network:
        self.norms.use, self.norms.record = ("group", True) if mode else ("running", False)
        return super().train(mode)

    @contextmanager
    def drops(self, key: Key | None) -> Iterator[None]:
        """Dropout and stochastic depth on, with masks that `key` and its rows decide; None: off.

        A key decides the network's noise too: forwards under one key have the same. None leaves noise as it is.
        """
        with self.masks.using(key), nullcontext() if key is None else self.noises.using(key.of("noise"), exact=True):
            yield

    @contextmanager
    def noise(self, key: Key | None = None, mode: Mode | None = None) -> Iterator[None]:
        """The network's noise by `key` and its rows: forwards that follow each other draw other noise, in order.

        mode: "off", "fixed" (one draw for each image, at every forward) or "drawn"; None: as it is.
        """
        by = nullcontext() if key is None else self.noises.using(key.of("noise"))
        with by, nullcontext() if mode is None else self.noises.switched(mode):
            yield

    @contextmanager
    def attacked(self, norm: Literal["running", "group"], key: Key | None = None) -> Iterator[None]:
        """For an attack: statistics as said, none recorded, forwards through the plain module, noise by `key`."""
        before = self.norms.use, self.norms.record, self.attacking
        self.norms.use, self.norms.record, self.attacking = norm, False, True
        try:
            with self.noise(key):
                yield
        finally:
            self.norms.use, self.norms.record, self.attacking = before

    def recorded(self) -> Tensor:
        """What the BatchNorms recorded since the last `move`, as one vector (float64 where the device has it)."""
        if not self.batchnorms:
            return self.mean.new_zeros(0, dtype=torch.float64)
        return torch.cat([norm.recorded for norm in self.batchnorms]).double()

    @torch.no_grad()
    def move(self, recorded: Tensor | None) -> None:
        """Move every running statistic by `recorded`, summed over micro-batches and ranks; None forgets it."""
        if recorded is not None and self.batchnorms:
            for norm, piece in zip(
                self.batchnorms, recorded.split([len(norm.recorded) for norm in self.batchnorms]), strict=True
            ):
                norm.move(piece)
        for norm in self.batchnorms:
            norm.recorded.zero_()


Hook = Callable[[nn.Module, Any, Any], Tensor]


def _edited(edit: Edit, name: str) -> Hook:
    return lambda module, inputs, output: edit(_single(output, name))


def _tapped(seen: dict[str, Tensor], name: str) -> Hook:
    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        seen[name] = _single(output, name)
        return seen[name].clone()  # the model goes on with a copy: many a ReLU or sum after it works in place

    return keep


def _single(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(f"layer {name!r} gives {type(output).__name__}, not one tensor; name a layer inside it")
    return output
