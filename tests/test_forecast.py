"""A forecast measures without leaving a trace, and multiplies rightly."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from robust_train.attacks.pgd import PGD
from robust_train.engines.plain import PlainEngine
from robust_train.forecast import Forecast, forecast, rehearse
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.settings.average import Average
from robust_train.settings.cluster import Cluster
from robust_train.settings.execution import Execution
from robust_train.settings.optimiser import Optimiser
from robust_train.threats.linf import Linf
from tests.registered import every_objective
from tests.toys import toy_run, trained, weights


def test_time_is_images_over_rate_and_device_hours_are_hours_times_devices():
    found = Forecast(updates=7_200, units=13, images_per_second=500, batch=1_000, devices=8, rate=0.4, unit="kWh")
    assert found.seconds == 14_400
    assert found.device_hours == 32
    assert str(found) == (
        "7,200 updates of 1,000 images, 13 forward passes each; 500 images/s: about 4 h 00 min, "
        "32 device-hours, 12.8 kWh"
    )


@pytest.mark.parametrize(("steps", "units"), [(0, 3), (1, 5), (5, 13)])
def test_an_update_of_k_steps_is_forecast_at_2k_plus_3_forward_passes(steps, units):
    run = toy_run(Madry(PGD(Linf(0.1), steps, 0.05)), updates=9, cluster=Cluster(rate=2.0, unit="EUR"))
    found = forecast(run, PlainEngine(run), devices=4)
    assert (found.units, found.updates, found.batch, found.devices) == (units, 9, 16, 4)
    assert (found.rate, found.unit) == (2.0, "EUR")


def test_the_rate_is_the_part_over_the_time_that_a_rehearsal_takes(monkeypatch):
    run = toy_run(Plain(), engine=Execution(micro_batch=4))
    engine = PlainEngine(run)
    clock = itertools.count(step=0.05)  # read before and after each rehearsal
    monkeypatch.setattr("robust_train.forecast.time.perf_counter", lambda: next(clock))
    assert forecast(run, engine, tries=1).images_per_second == pytest.approx(4 / 0.05)
    assert forecast(run, engine, devices=8, tries=2).images_per_second == pytest.approx(8 * 4 / 0.05)


def generators() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("name", every_objective(2))
def test_a_rehearsal_leaves_the_engine_bit_for_bit_as_it_was(name):
    """Weights, gradients, running statistics, what BatchNorm recorded, modes, state, and every random generator."""
    run = toy_run(every_objective(2)[name], optimiser=Optimiser("adamw", 0.01), average=Average(0.9), updates=2)
    engine = PlainEngine(run)
    trained(engine)
    engine.updates = 1
    for norm in engine.module.batchnorms:
        norm.recorded.fill_(3.0)  # as in the middle of an update
    gradient = torch.ones(1)
    first = next(engine.module.parameters())
    first.grad = gradient.expand_as(first).clone()

    def everything():
        tensors = [*weights(engine).values(), *(norm.recorded.clone() for norm in engine.module.batchnorms)]
        tensors += [value.clone() for value in engine.averaged.kept.values()]
        tensors += [value.clone() for value in engine.state.counts.values()]
        tensors += [v.clone() for s in engine.optimiser.state.values() for v in s.values() if torch.is_tensor(v)]
        modes = [module.training for module in engine.module.modules()]
        flags = [(parameter.requires_grad, parameter.grad is None) for parameter in engine.module.parameters()]
        return tensors, modes, flags, generators(), engine.module.now

    before = everything()
    rehearse(run, engine, engine.micro_batch)
    after = everything()
    assert len(before[0]) == len(after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert torch.equal(first.grad, gradient.expand_as(first))


def test_a_run_goes_the_same_way_with_and_without_a_forecast():
    run = toy_run(Madry(PGD(Linf(0.1), 2, 0.05)), updates=3)
    plain, looked_at = PlainEngine(run), PlainEngine(run)
    forecast(run, looked_at)
    assert trained(plain) == trained(looked_at)
    mine, theirs = weights(plain), weights(looked_at)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_rehearsal_uses_no_collective(monkeypatch):
    from torch import distributed

    def refuse(*_, **__):
        raise AssertionError("a collective in a rehearsal: ranks that check alone would wait for ever")

    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier", "reduce_scatter"):
        monkeypatch.setattr(distributed, name, refuse)
    run = toy_run(Madry(PGD(Linf(0.1), 1, 0.05)))
    rehearse(run, PlainEngine(run), 16)


def test_a_finished_run_is_forecast_at_no_time():
    run = toy_run(Plain(), updates=1)
    engine = PlainEngine(run)
    trained(engine)
    assert forecast(run, engine).seconds == 0
