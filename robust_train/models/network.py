"""Network: pixels in [0, 1] to logits, with everything inside that an attack must see."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.keyed.mode import Changes, Held, Mode, Noisy, Norms, Precision
from robust_train.keyed.noise import connect
from robust_train.losses import full
from robust_train.models.batchnorm import GroupedBatchNorm, group_batchnorms
from robust_train.models.drops import refuse_unkeyed, replace_drops
from robust_train.read.errors import ConfigError, nearest

Swap = Callable[[Tensor], Tensor]
"""A layer's output to what the layers after it see in its place."""


class Moded(nn.Module):
    """A network, or several as one, whose forwards have a mode. The words for it, each for a while."""

    @property
    def by_chance(self) -> bool:
        """Whether forwards of the same images differ as things stand: noise that is neither off nor fixed."""
        return False

    @abstractmethod
    def mode(self, training: bool | None = None, **changes: Unpack[Changes]) -> AbstractContextManager[None]:
        """Forwards in another mode for a while; all is as it was afterwards, also after an error.

        changes: what is said of the mode (`robust_train.keyed.mode`); the rest stays. training: train or eval of every
        module, where dropout and foreign layers look; None: as they are.
        """

    def drops(self, key: Key | None) -> AbstractContextManager[None]:
        """Dropout and stochastic depth on, with masks that `key` and its rows decide; None: off.

        A key decides the network's noise too: forwards under one key have the same. None leaves noise as it is.
        """
        return self.mode(masks="off") if key is None else self.mode(masks=key, matched=key)

    @contextmanager
    def noise(self, key: Key | None = None, mode: Noisy | None = None) -> Iterator[None]:
        """The network's noise by `key` and its rows: forwards that follow each other draw other noise, in order.

        mode: "off", "fixed" (one draw for each image, at every forward) or "drawn"; None: as it is.
        """
        by = nullcontext() if key is None else self.mode(noise=key)
        with by, nullcontext() if mode is None else self.mode(noisy=mode):
            yield

    @contextmanager
    def attacked(self, norm: Norms, key: Key | None = None) -> Iterator[None]:
        """For an attack: statistics as said, none recorded, noise by `key`."""
        with self.mode(norm=norm, record=False), self.noise(key):
            yield

    @contextmanager
    def judged(self, key: Key | None = None) -> Iterator[None]:
        """For a verdict: eval mode, running statistics, float32, noise by `key`."""
        with self.mode(False, norm="running", record=False, precision="fp32"), self.noise(key):
            yield


class Network(Moded):
    """A timm (or our) model with its normalisation and precision inside.

        network(images) = model((images - mean) / std)        images [B, C, H, W] in [0, 1] -> logits [B, classes]

    BatchNorm works on groups of consecutive images, dropout and stochastic depth on keyed masks:

        with network.drops(key): logits = network(images)

    Noise that is part of the network (a V1 front end's) is drawn in evaluation too, by the same key, or by one of
    its own where masks are off: `with network.noise(key)`.

    `train()` means group statistics, recorded, `eval()` running ones, as in PyTorch. All that decides a forward beside
    images and weights is one value, `now`, and `mode` changes it for a while; `drops`, `noise`, `attacked` and `judged`
    are words for it.
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
        self.channels_last = channels_last
        self.group = group  # consecutive images that share BatchNorm statistics
        self.held = Held(Mode(precision=precision))
        replace_drops(model, self.held)
        refuse_unkeyed(model)
        self.noisy = connect(model, self.held)  # names of the layers that draw noise
        self.batchnorms: list[GroupedBatchNorm] = group_batchnorms(model, self.held, group)
        self.model = model  # weights stay contiguous: DeepSpeed flattens and sends them as they lie
        self.cut = False  # whether its weights are whole inside a forward only (ZeRO 3): nothing else may ask for them
        self._attacked = False
        self.stand_in(None)
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, swaps: Mapping[str, Swap] | None = None, taps: Sequence[str] = ()) -> Any:
        """Logits [B, classes], float32 or better. With `taps` also {name: the output of that layer, with its graph}.

        swaps: {layer name: function of its output}, put in its place; "" names the input images. A tap sees what
        a swap made. Raises ConfigError for an unknown name, or a layer that gives no single tensor.
        """
        swaps = swaps or {}
        other = vars(self)["_stand_in"]
        if other is not None and self._attacked:
            with other.held.under(self.now):
                return other(images, swaps, taps)
        seen: dict[str, Tensor] = {}
        if "" in swaps:
            images = swaps[""](images)
        swapped = tuple((self._layer(name), _swapped(swap, name)) for name, swap in swaps.items() if name)
        hooks = [layer.register_forward_hook(hook) for layer, hook in swapped]
        hooks += [self._layer(name).register_forward_hook(_tapped(seen, name)) for name in taps]
        # a compiled model looks for no hooks that came after its compilation: it would leave them out in silence
        model = self.model._call_impl if hooks else self.model
        try:
            mode = replace(self.now.of_forward(len(images), images.device, bool(self.noisy)), swaps=swapped)
            with self.held.under(mode):
                normal = (images - self.mean) / self.std
                if self.channels_last:
                    normal = normal.contiguous(memory_format=torch.channels_last)
                with torch.autocast(images.device.type, torch.bfloat16, enabled=mode.precision == "bf16"):
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

    def stand_in(self, network: Network | None) -> None:
        """Let `network`, of the same build, answer while this one is `attacked`; None: nobody."""
        vars(self)["_stand_in"] = network  # not as a module inside this one

    @contextmanager
    def attacked(self, norm: Norms, key: Key | None = None) -> Iterator[None]:
        before, self._attacked = self._attacked, True
        try:
            with super().attacked(norm, key):
                yield
        finally:
            self._attacked = before

    @property
    def by_chance(self) -> bool:
        return bool(self.noisy) and self.now.noisy == "drawn"

    @property
    def now(self) -> Mode:
        """The mode of the forwards to come."""
        return self.held.now

    @property
    def precision(self) -> Precision:
        """Of the forwards to come."""
        return self.now.precision

    def train(self, mode: bool = True) -> Network:
        self.held.rest({"norm": "group" if mode else "running", "record": mode})
        return super().train(mode)

    @contextmanager
    def mode(self, training: bool | None = None, **changes: Unpack[Changes]) -> Iterator[None]:
        norm = changes.get("norm")
        for name in norm if isinstance(norm, Mapping) else ():
            self._layer(name)  # a layer that is not there would keep its statistics in silence
        with flagged(self, training), self.held.entered(changes):
            yield

    def settle(self, **changes: Unpack[Changes]) -> None:
        """Change the mode for good."""
        self.held.settle(changes)

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


@contextmanager
def flagged(module: nn.Module, training: bool | None) -> Iterator[None]:
    """Train or eval of a module and all inside it for a while; afterwards each is as it was. None: as they are."""
    if training is None:
        yield
        return
    before = {child: child.training for child in module.modules()}
    _flag(module, training)
    try:
        yield
    finally:
        for child, mode in before.items():
            child.training = mode


def _flag(module: nn.Module, training: bool) -> None:
    """Train or eval of all modules, the modes of the networks among them as they are: these are said apart."""
    if isinstance(module, Network) or not any(isinstance(child, Network) for child in module.modules()):
        nn.Module.train(module, training)
        return
    module.training = training
    for child in module.children():
        _flag(child, training)


Hook = Callable[[nn.Module, Any, Any], Tensor]


def _swapped(swap: Swap, name: str) -> Hook:
    return lambda module, inputs, output: swap(_single(output, name))


def _tapped(seen: dict[str, Tensor], name: str) -> Hook:
    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        seen[name] = _single(output, name)
        return seen[name].clone()  # the model goes on with a copy: many a ReLU or sum after it works in place

    return keep


def _single(output: Any, name: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(f"layer {name!r} gives {type(output).__name__}, not one tensor; name a layer inside it")
    return output
