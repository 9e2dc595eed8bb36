"""A tiny network and a fixed set of images, on which laws are tested to the last digit."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.engines.engine import Engine
from robust_train.judging import Judge
from robust_train.models.blueprint import Blueprint
from robust_train.nouns import Batch, Dataset, Model, Objective, Place, Shape
from robust_train.run import Run
from robust_train.saved import load, save
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.tracking import Tracking
from robust_train.train import train

CLASSES, SIDE = 5, 8

# a folder of this test process's own, set on import so that the ranks it starts inherit it
_OWN = f"TOY_FOLDER_{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
if _OWN not in os.environ:
    os.environ[_OWN] = tempfile.mkdtemp(prefix="toy-")
SCRATCH = os.environ[_OWN]


class Block(nn.Module):
    """conv-bn-relu-drop: what a block of a real network has."""

    def __init__(self, inside: int, outside: int, stride: int, rate: float, smooth: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.act = nn.Tanh() if smooth else nn.ReLU()
        self.drop = nn.Dropout(rate)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.act(self.norm(self.conv(images))))


class Flat(nn.Module):
    """A linear classifier of everything."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


@dataclass(frozen=True)
class ToyNetwork(Model):
    """conv-bn-relu-drop twice, a conv-bn that ends its block, and a linear layer."""

    width: int = 6  # channels
    rate: float = 0.2  # dropout
    smooth: bool = False  # tanh for relu: without kinks, at which rounding decides a slope

    use = "toy"

    def build(self, classes: int, shape: Shape) -> nn.Module:
        channels, size, _ = shape
        model = nn.Sequential()
        # `layers` is a container whose children checkpointed networks recompute
        model.add_module(
            "layers",
            nn.Sequential(
                Block(channels, self.width, 2, self.rate, self.smooth),
                Block(self.width, self.width, 1, self.rate, self.smooth),
                # no bias: before a BatchNorm its gradient is rounding alone, and Adam makes whole steps of that
                nn.Sequential(nn.Conv2d(self.width, self.width, 1, bias=False), nn.BatchNorm2d(self.width)),
            ),
        )
        model.add_module("head", Flat(self.width * (size // 2) ** 2, classes))
        return model

    def stages(self, model: nn.Module) -> Iterator[str]:
        yield from (f"layers.{index}" for index in range(2))


@dataclass(frozen=True)
class ToyImages(Dataset):
    """Noisy patterns, one a class: learnt in tens of updates. Each global batch is a function of its number alone."""

    number: int = 64  # of training images

    use = "toy"

    @property
    def classes(self) -> int:
        return CLASSES

    @property
    def shape(self) -> Shape:
        return (1, SIDE, SIDE)

    def prepare(self) -> None:
        pass

    def check(self) -> None:
        pass

    def checksums(self) -> dict[str, str]:
        images, targets = pictures(self.number)
        return {"toy": hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()}

    def names(self) -> list[str]:
        return [str(label) for label in range(CLASSES)]

    def train_size(self) -> int:
        return self.number

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        images, targets = pictures(self.number)
        share = batch // place.world
        update = start
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + update)
            sample = torch.randint(self.number, (batch,), generator=generator)
            position = torch.arange(place.rank * share, (place.rank + 1) * share)
            mine = sample[position]
            yield Batch(images[mine], targets[mine], position, mine)
            update += 1

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        images, targets = pictures(self.number)
        sample = torch.arange(min(limit or 32, 32))
        for number, rows in enumerate(sample.split(chunk)):
            if number % place.world == place.rank:
                yield Batch(images[rows], targets[rows], rows, rows)


@cache
def pictures(number: int) -> tuple[Tensor, Tensor]:
    """uint8 [N, 1, 8, 8] and labels [N]."""
    generator = torch.Generator().manual_seed(7)
    patterns = torch.rand(CLASSES, 1, SIDE, SIDE, generator=generator)
    targets = torch.randint(CLASSES, (number,), generator=generator)
    images = 0.6 * patterns[targets] + 0.4 * torch.rand(number, 1, SIDE, SIDE, generator=generator)
    return (images * 255).to(torch.uint8), targets


def register() -> None:
    """Make the toys known to the parser: in a process that is not the tests' own, whose registries stay as they are."""
    from robust_train.read.registry import datasets, models

    for registry, toy in ((models, ToyNetwork), (datasets, ToyImages)):
        if "toy" not in registry:
            registry.register("toy")(toy)


def toy_run(objective: Objective, folder: str | Path | None = None, **changes: Any) -> Run:
    """A run of the toys with BatchNorm groups of 4 and momentum SGD; `engine` and the rest as said.

    folder: None for runs that write nothing, or somewhere of their own.
    """
    settings: dict[str, Any] = {
        "network": Blueprint(ToyNetwork(), group=4),
        "optimiser": Optimiser(name="momentum", lr=0.02, weight_decay=1e-3),
        "updates": 20,
        "batch": 16,
        "records": Tracking(wandb="off", progress="off"),
        "folder": str(folder or SCRATCH),
    }
    return Run(data=ToyImages(), objective=objective, **{**settings, **changes})


class Kept:
    """Records that stay in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.said: list[str] = []

    def add(self, update: int, metrics: Mapping[str, float]) -> None:
        self.lines.append({"update": update, **metrics})

    def say(self, text: str) -> None:
        self.said.append(text)

    def resume(self, update: int, closed: Any = None) -> None:
        self.lines = [line for line in self.lines if line["update"] < update]

    def close_segment(self, update: int) -> dict[str, Any]:
        return {"update": update}

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None  # times, forecasts, pictures: not kept


def trained(engine: Engine) -> list[dict[str, float]]:
    """Train to the end of the engine's run by the loop itself; the metrics of each update."""
    records = Kept()
    train(engine.run, engine, Judge(engine.run, engine), records)  # type: ignore[arg-type]
    return records.lines


def saved(engine: Engine, judge: Judge | None = None) -> None:
    """Write a checkpoint of an engine, and of what was judged."""
    save(engine.run, engine, judge or Judge(engine.run, engine), Kept())  # type: ignore[arg-type]


def gone_back(engine: Engine, folder: Path) -> Judge:
    """Put an engine where a checkpoint was; the judge that goes with it."""
    judge = Judge(engine.run, engine)
    load(engine.run, engine, judge, folder)
    return judge


def weights(engine: Engine) -> dict[str, Tensor]:
    """A copy of the network's weights and running statistics."""
    return {name: value.detach().clone() for name, value in engine.module.model.state_dict().items()}
