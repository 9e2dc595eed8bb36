"""What Python gives an evaluation that no file says: images in memory, and attacks that are functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robust_train import fingerprint
from robust_train.attacks.attacked import attacked
from robust_train.attacks.sight import refuse
from robust_train.evaluate.counted import held
from robust_train.losses import labels_of
from robust_train.nouns import PIXELS, Attack, Batch, Goal, Place, Scale, Shape, Threat
from robust_train.read.errors import ConfigError

Fooling = Callable[[Any, Tensor, Tensor], Tensor]
"""Any attack: (module, images [b, ...] in [0, 1], labels [b]) -> points [b, ...]."""


class Images:
    """Images [N, ...] in [0, 1] and their labels [N], as a data set without training images."""

    spread = False
    scale: Scale = PIXELS

    def __init__(self, images: Tensor, labels: Tensor, classes: int, names: list[str] | None = None) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self._names = names or [str(number) for number in range(classes)]

    @property
    def shape(self) -> Shape:
        """Of one image."""
        return tuple(self.images.shape[1:])

    def contents(self) -> Any:
        """Every pixel and label."""
        return {"images": self.images, "labels": self.labels, "classes": self.classes}

    def names(self) -> list[str]:
        """What the classes are called: by number where nothing is said."""
        return self._names

    def checksums(self) -> dict[str, str]:
        """sha256 of all pixels and labels."""
        return {name: fingerprint.tree(getattr(self, name))["sha256"] for name in ("images", "labels")}

    def validation_size(self) -> int:
        """N."""
        return len(self.labels)

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks; an image's sample is its row."""
        rows = torch.arange(len(self.labels) if limit is None else min(limit, len(self.labels)))
        for some in rows.split(chunk)[place.rank :: place.world]:
            # a copy: who judges may write on what it is given, and these are the caller's
            yield Batch(self.images[some].clone(), self.labels[some].clone(), some, some)


@dataclass(frozen=True)
class Given(Attack):
    """A function (module, images, labels) -> points, in the place of an attack.

    It is given the images that are right when clean, some at a time, with gradients enabled and the parameters frozen,
    and may do with them what it likes. What it returns is checked: a point that is not finite, not in [0, 1] or farther
    than eps counts for nothing, and the report says so.
    """

    threat: Threat
    name: str  # in the report
    a_stranger_s = True
    code: str = ""  # fingerprint of the function, where verdicts are kept

    by_row = False  # it sees some images at a time

    @classmethod
    def of(cls, call: Fooling, threat: Threat, code: str = "") -> Given:
        """The attack of a function, called by its own name."""
        made = cls(threat, named(call), code)
        made.__dict__["call"] = call
        return made

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        """What the function returns, on the images' device and in their type; raises ConfigError for another shape."""
        refuse(self, goal, "is a function")
        own = held(network)
        with attacked(network):
            found = self.__dict__["call"](own, images.clone(), labels_of(targets).clone())
        if not isinstance(found, Tensor) or found.shape != images.shape:
            what = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"{self.name} returned {what} for images {list(images.shape)}: return the adversarial images alone, a "
                "tensor of the images' own shape"
            )
        return found.detach().to(images)

    def cost(self) -> float:
        return 2.0  # not known: some forwards and backwards

    @property
    def label(self) -> str:
        return self.name


def named(call: Any) -> str:
    """What a function is called: of one that was made of another, the other's name."""
    while isinstance(call, partial):
        call = call.func
    name = getattr(call, "__name__", type(call).__name__)
    return "function" if name == "<lambda>" else name


def takes_three(call: Any) -> bool:
    """Whether something may be called with a module, images and labels, as far as can be seen."""
    try:
        inspect.signature(call).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # one that is built in says nothing
        return True
    return True
