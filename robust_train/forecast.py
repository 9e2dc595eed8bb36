"""What a run will take: updates, forward units, images a second measured on a few updates, hours, cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from robust_train.keyed import Key
from robust_train.nouns import Batch, at

if TYPE_CHECKING:
    from robust_train.engines.engine import Engine
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
        """Wall time left."""
        return self.updates * self.batch / self.images_per_second if self.images_per_second else float("nan")

    @property
    def device_hours(self) -> float:
        """Wall time left, times devices."""
        return self.seconds * self.devices / 3600

    def __str__(self) -> str:
        line = (
            f"{self.updates:,} updates of {self.batch:,} images, {self.units:g} forward passes each; "
            f"{self.images_per_second:,.0f} images/s: about {clock(self.seconds)}, {self.device_hours:.2g} device-hours"
        )
        return line if self.rate is None else f"{line}, {self.device_hours * self.rate:.3g} {self.unit}"


def forecast(run: Run, engine: Engine, tries: int = 2) -> Forecast:
    """Measure what one image costs, on a few rehearsed losses with their gradients; nothing of the engine is changed.

    A rehearsal is an attack and a forward and backward of one part of made-up images: what an update does between its
    reductions. It draws no data, moves no weights, no statistics and no gradients, and uses no collective.
    """
    data, network = run.data, engine.module
    part = engine.part
    key = Key(run.seed).of("forecast").rows(torch.arange(part, device=engine.device))
    shape = (part, data.channels, data.size, data.size)
    images = torch.full(shape, 0.5, dtype=engine.dtype, device=engine.device)
    rows = torch.arange(part, device=engine.device)
    batch = run.mix(Batch(images, rows % data.classes, rows, rows), key)
    objective = at(run.objective, engine.updates, run.updates)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    state = {name: value.clone() for name, value in engine.state.items()}
    fastest = float("inf")
    for _ in range(tries):
        began = time.monotonic()
        total = objective(network, batch, key, state).total
        torch.autograd.grad(total, parameters, allow_unused=True)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.monotonic() - began)
    network.move(None)
    rate = part * engine.place.world / fastest
    cluster = run.cluster
    return Forecast(
        run.updates - engine.updates, objective.cost(), rate, run.batch, engine.place.world, cluster.rate, cluster.unit
    )


def clock(seconds: float) -> str:
    """A duration as people say it: 45 s, 12 min, 3 h 20 min, 4 d 2 h."""
    if seconds != seconds:
        return "an unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
