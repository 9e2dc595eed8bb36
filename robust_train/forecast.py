"""What a run will take: updates, forward units, images a second measured on a few updates, hours, cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_train.engines.engine import Engine
from robust_train.engines.pieces import in_pieces
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.nouns import Batch, Dataset, Extra, at
from robust_train.read.errors import ConfigError
from robust_train.records.progress import duration
from robust_train.run import Run


@dataclass(frozen=True)
class Forecast:
    """What is left of a run. Everything but `units` is an estimate, kept current by the progress bar."""

    updates: int  # left to do
    units: float  # forward passes of the batch an update costs: 2K + 3 for a K-step attack
    images_per_second: float  # of the whole job, measured
    batch: int  # images an update
    devices: int  # that work at once
    rate: float | None = None  # cost or energy of a device-hour
    unit: str = "kWh"  # the unit of `rate`

    @property
    def seconds(self) -> float:
        """Wall time left, without validation and without waiting for data."""
        return self.updates * self.batch / self.images_per_second

    @property
    def device_hours(self) -> float:
        """Wall time left, times devices."""
        return self.seconds * self.devices / 3600

    def __str__(self) -> str:
        line = (
            f"{self.updates:,} updates of {self.batch:,} images, {self.units:g} forward passes each; "
            f"{self.images_per_second:,.0f} images/s: about {duration(self.seconds)}, "
            f"{self.device_hours:.2g} device-hours"
        )
        return line if self.rate is None else f"{line}, {self.device_hours * self.rate:.3g} {self.unit}"


def forecast(run: Run, engine: Engine, devices: int | None = None, tries: int = 2) -> Forecast:
    """Measure what a micro-batch costs on a few rehearsals of an update; nothing of the engine is changed.

    devices: as many as will work at once, each taken to be as fast as this one; None: those of the engine.
    """
    fastest = float("inf")
    for _ in range(tries):  # the first may compile, tune and allocate
        _wait(engine)
        began = time.perf_counter()
        rehearse(run, engine, engine.micro_batch)
        _wait(engine)
        fastest = min(fastest, time.perf_counter() - began)
    devices = devices or engine.place.world
    pace = engine.micro_batch * devices / fastest
    left, cluster = run.updates - engine.updates, run.cluster
    return Forecast(left, run.objective.cost(), pace, run.batch, devices, cluster.rate, cluster.unit)


def rehearse(run: Run, engine: Engine, size: int, network: Network | None = None) -> None:
    """The attack, forward and backward of a micro-batch of `size` made-up images: an update between reductions.

    Draws no data, moves no weights, no statistics and no gradients, uses no collective but ZeRO 3's gathers. network:
    another than the engine's: its whole weights, for no gathers. Raises ConfigError where the device's memory does not
    hold it.
    """
    network = network or engine.network
    objective = at(run.objective, min(engine.updates, run.updates - 1), run.updates)
    batch = made_up(run.data, size, engine.device, engine.dtype)
    key = Key(run.seed).of("rehearsal").rows(batch.position)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    recorded = [norm.recorded.clone() for norm in network.batchnorms]
    try:
        with in_pieces(run, network):
            loss = objective(network, run.mix(batch, key), key, engine.state)
        engine.parts.backward(loss.of, 1.0, retain=loss.total is not None)
        if loss.total is not None and parameters:
            torch.autograd.grad(loss.total, parameters, allow_unused=True)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"engine.micro_batch={size}: {engine.device} has no memory for {size} images at once. Set "
            "engine.micro_batch to less than that, or network.checkpointing=true."
        ) from error
    finally:
        engine.parts.discard()
        with torch.no_grad():
            for norm, before in zip(network.batchnorms, recorded, strict=True):
                norm.recorded.copy_(before)


def made_up(data: Dataset, size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """Samples of the data set's shape and range, ramps from low to high, every label in turn, and all that they carry.

    Of what samples carry numbers are ramps in [0, 1], whole ones 0; views are the same ramps, each begun elsewhere.
    """
    rows, count = torch.arange(size, device=device), math.prod(data.shape)
    ramp = torch.arange(count, device=device) % 251
    # another ramp for each image: alike they would have no variance for a BatchNorm after global pooling
    scale, starts = data.scale, 17 * rows[:, None]

    def view(number: int) -> Tensor:
        share = ((ramp[None] + starts + 83 * number) % 251).to(dtype).view(size, *data.shape) / 250
        return scale.low + (scale.high - scale.low) * share

    def carried(said: Extra) -> Tensor:
        if said.whole:
            return torch.zeros(size, *said.shape, dtype=torch.int64, device=device)
        places = torch.arange(math.prod(said.shape), device=device)
        return ((places[None] + starts) % 251).to(dtype).view(size, *said.shape) / 250

    extra = {name: carried(said) for name, said in data.extra.items()}
    beside = None if data.beside is None else made_up(data.beside, size, device, dtype)
    views = tuple(view(number) for number in range(1, data.views))
    return Batch(view(0), rows % data.classes, rows, rows, extra, views, None, beside, scale)


def _wait(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
