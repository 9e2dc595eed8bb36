"""Networks that are not ours: any module or function from images to logits, held so that nothing of it surprises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from robust_train.keyed import Key
from robust_train.keyed.mode import Changes, Norms
from robust_train.models.network import Moded, flagged
from robust_train.read.errors import InputError


class Foreign(Moded):
    """A module or function from images [B, ...] in [0, 1] to logits [B, C], with the words of a network of ours.

    What its attributes are called means nothing here. A forward sees a copy of the images, since many a network works
    in place, and float32: a `torch.autocast` around it ends there. Its answer is looked at: `answered`. What it draws
    or drops by itself is its own affair: `drops` and `noise` change nothing.
    """

    def __init__(self, given: Any, least: int = 2) -> None:
        """least: how many classes the labels speak of. Raises InputError for what is no function, or a wrapper."""
        super().__init__()
        if not callable(given):
            raise InputError(f"{type(given).__name__} is no network: give a module or function from images to logits")
        if isinstance(given, (DataParallel, DistributedDataParallel)) or _sharded(given):
            raise InputError(
                f"{type(given).__name__} wraps a network for distributed training, and an attack through the wrapper "
                "costs collectives or corrupts the update: attack its .module"
            )
        if isinstance(given, nn.Module) and any(parameter.is_inference() for parameter in given.parameters()):
            raise InputError(
                f"the weights of {type(given).__name__} were made within inference_mode, and no gradient goes through "
                "them: build or load it outside"
            )
        self.given, self.least = given, least
        self.training = bool(given.training) if isinstance(given, nn.Module) else False

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] as they come. Raises InputError where they are none."""
        with plainly(images.device):
            return answered(self.given(images.clone()), images, self.given, self.least)

    @contextmanager
    def mode(self, training: bool | None = None, **changes: Unpack[Changes]) -> Iterator[None]:
        """Train or eval of every module inside; nothing else of a mode means anything to it."""
        with flagged(self, training):
            yield

    @contextmanager
    def attacked(self, norm: Norms, key: Key | None = None) -> Iterator[None]:
        """Eval mode, or train mode with its statistics set aside (norm "group"); all restored exactly."""
        kept = {name: buffer.clone() for name, buffer in self.named_buffers()} if norm == "group" else {}
        try:
            with flagged(self, norm == "group"):
                yield
        finally:
            with torch.no_grad():
                for name, buffer in kept.items():
                    self.get_buffer(name).copy_(buffer)


def moded(network: Any, least: int = 2) -> Moded:
    """The network itself where it is ours, else as `Foreign`. Raises InputError for what cannot be attacked."""
    return network if isinstance(network, Moded) else Foreign(network, least)


def plainly(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast, where there is one around."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def answered(logits: Any, images: Tensor, network: Any, least: int = 2) -> Tensor:
    """What a network said of images, where that is logits [B, C] of C >= 2 classes; reads nothing of the device.

    Raises InputError with the remedy for tuples, mappings and objects, for other shapes, for fewer classes than the
    `least` that labels speak of, and where a gradient is wanted and none leads to the images.
    """
    name = getattr(network, "__name__", type(network).__name__)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"{name} gives {_told(logits)} where logits are wanted, a tensor [B, C] of C >= 2 classes: "
            f"give {_taken(logits)}"
        )
    wanted = f"where logits [{len(images)}, C] of C >= 2 classes are wanted"
    if logits.dim() != 2 or len(logits) != len(images):
        flat = logits.dim() > 2 and len(logits) == len(images)
        cure = "flatten them: lambda images: model(images).flatten(1)" if flat else "one row of logits an image"
        raise InputError(f"{name} gives a tensor {list(logits.shape)} {wanted}: {cure}")
    if logits.shape[1] < 2:
        raise InputError(
            f"{name} gives a tensor {list(logits.shape)} {wanted}: say a single logit z as those of two classes, "
            "torch.cat([-z / 2, z / 2], 1)"
        )
    if not logits.is_floating_point():
        raise InputError(f"{name} gives {logits.dtype} {wanted}: give scores before any argmax, as floats")
    if logits.shape[1] < least:
        raise InputError(
            f"the labels speak of {least} classes, and {name} gives logits of {logits.shape[1]}: labels run from 0 to "
            "C - 1, and distributions are [B, C]"
        )
    if torch.is_grad_enabled() and images.requires_grad and not logits.requires_grad:
        raise InputError(
            f"the logits of {name} have no gradient for the images: it detaches, or runs under no_grad or "
            "inference_mode. End that, or take an attack that asks for answers alone (square, spsa, hopskipjump)"
        )
    return logits


def _told(answer: Any) -> str:
    """What an answer is, in words."""
    if isinstance(answer, (tuple, list)) and not hasattr(answer, "logits"):
        return f"a {type(answer).__name__} of {len(answer)}"
    if isinstance(answer, Mapping) and not hasattr(answer, "logits"):
        return f"a {type(answer).__name__} of {', '.join(map(repr, answer)) or 'nothing'}"
    return f"a {type(answer).__name__}"


def _taken(answer: Any) -> str:
    """How the logits would be got out of it."""
    if hasattr(answer, "logits"):
        return "lambda images: model(images).logits"
    if isinstance(answer, Mapping):
        named = "logits" if "logits" in answer or not answer else next(iter(answer))
        return f"lambda images: model(images)[{named!r}]"
    return "lambda images: model(images)[0]" if isinstance(answer, (tuple, list)) else "a function that returns them"


def _sharded(given: Any) -> bool:
    """Whether a wrapper of DeepSpeed, or of PyTorch's sharding: told by name, so that neither is imported."""
    homes = {cls.__module__.partition(".")[0] for cls in type(given).__mro__}
    return "deepspeed" in homes or any(cls.__name__ == "FullyShardedDataParallel" for cls in type(given).__mro__)
