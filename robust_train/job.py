"""A job: one process's part of a run, from its folder to its summary. What `robust_train` and `launch` both do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_train import checkpoint
from robust_train.agreement import agreed
from robust_train.check import check, check_room, writable
from robust_train.engines.division import micro_batch_size
from robust_train.engines.engine import Engine, RollBack
from robust_train.evaluate.accuracy import judged
from robust_train.forecast import Forecast, forecast
from robust_train.judging import Judge, Judged
from robust_train.keyed import Key
from robust_train.leaving import heard, patiently
from robust_train.nouns import Attack, Place, at
from robust_train.ownership import alone, branched, finished, prepare, same, same_data
from robust_train.read import uses
from robust_train.read.errors import ConfigError
from robust_train.records import Records
from robust_train.records.pictures import attack_picture
from robust_train.run import Run
from robust_train.saved import load
from robust_train.train import train
from robust_train.trained import weights_of


def do(run: Run, make: Callable[[Run, Place], Engine], place: Place) -> dict[str, Any]:
    """Train from wherever the run's folder stands to its end, evaluate, and return the summary.

    Everything that can be found wrong beforehand is found before the first update.
    """
    with heard():
        return _do(run, make, place)


def _do(run: Run, make: Callable[[Run, Place], Engine], place: Place) -> dict[str, Any]:
    def prepared() -> dict[str, Any]:
        prepare(run, place)
        done = finished(run)
        if not done:
            deterministic(run, place)
            check(run, place.world)
        return done

    done, newest = agreed(run, place, prepared)
    if done:
        return done
    with alone(run, place), make(run, place) as engine:
        check_room(run, engine)
        with Records(run, place) as records:
            judge = Judge(run, engine)
            begin(run, engine, judge, records, newest)
            records.expect(forecast(run, engine))
            while True:
                try:
                    with patiently():
                        train(run, engine, judge, records)
                    return finish(run, engine, judge, records)
                except RollBack as fault:
                    roll_back(run, engine, judge, records, fault)


def look(run: Run, make: Callable[[Run, Place], Engine], place: Place, devices: int) -> list[str]:
    """All that `do` looks at beforehand, and the forecast for so many devices, in words. Writes nothing of the run."""
    lines, expected = foreseen(run, make, place, devices)
    return [*lines, f"forecast: {expected}"]


def foreseen(run: Run, make: Callable[[Run, Place], Engine], place: Place, devices: int) -> tuple[list[str], Forecast]:
    """The same, the forecast as figures."""
    same(run)
    finished(run)  # refuses a summary.json that is none
    writable(run.path)
    run.data.prepare()
    same_data(run)
    deterministic(run, place)
    sizes = run.data.train_size(), run.data.validation_size()
    lines = ["data: {:,} training and {:,} validation images, labels in range".format(*sizes), check(run, devices)]
    share = replace(
        run, engine=replace(run.engine, micro_batch=micro_batch_size(run, devices))
    )  # one device's share of the work
    with make(share, place) as engine:
        lines += check_room(share, engine)
        newest = checkpoint.newest(run.path)
        if newest is not None:
            load(run, engine, Judge(run, engine), newest)
            lines.append(f"goes on from update {engine.updates:,} ({newest})")
            lines += uses.changed(run.uses, newest)
        elif (source := branched(run)) is not None:
            load(run, engine, Judge(run, engine), source)
            lines.append(f"branches from {source}: goes on from update {engine.updates:,}")
        elif run.start is not None:
            head = engine.begin_with(weights_of(Path(run.start)), run.start)
            lines.append(f"begins with {run.start}" + f", a new head: {', '.join(head)}" * bool(head))
        return lines, forecast(share, engine, devices)


def begin(run: Run, engine: Engine, judge: Judge, records: Records, newest: Path | None) -> None:
    """From the folder's newest whole checkpoint, else from `branch`, from `start`, or from the seed."""
    if newest is not None:
        closed = load(run, engine, judge, newest)
        records.resume(engine.updates, closed)
        for line in uses.changed(run.uses, newest):
            records.say(f"{line}: from update {engine.updates} on, what is here is used")
        return
    if (source := branched(run)) is not None:
        branch(run, engine, judge, records, source)
        return
    records.resume(0)
    if run.start is not None:
        start_from(engine, Path(run.start), records)
    elif run.network.model.calibrated_on():
        calibrate(run, engine)


def branch(run: Run, engine: Engine, judge: Judge, records: Records, source: Path) -> None:
    """Go on from another run's checkpoint: its metrics come first, then a line that says where this run begins."""
    closed = load(run, engine, judge, source)
    judge.judged = Judged()  # the best of this run is one of its own
    if engine.place.leads:
        checkpoint.mark_best(run.path, None, 0.0)
    records.inherit(engine.updates, source.parent.parent / "metrics.jsonl", closed)
    records.add(engine.updates, {"branch/updates": engine.updates})
    records.say(f"branches from {source}: goes on from update {engine.updates:,}")


def calibrate(run: Run, engine: Engine) -> None:
    """Let the model take from data what its initialisation asks for: of the first images of the training order."""
    model, count = run.network.model, run.network.model.calibrated_on()

    def change(built: nn.Module) -> None:
        found: list[Tensor] = []
        for batch in run.batches(Place(device=engine.place.device), 0):  # whole ones, not this rank's share
            batch = batch.to(engine.device, engine.dtype)
            found.append(batch.images if batch.broken is None else batch.images[batch.broken == 0])
            if sum(map(len, found)) >= count:
                break
        model.calibrate(built, (torch.cat(found)[:count] - engine.module.mean) / engine.module.std)

    engine.begin_calibrated(change)


def start_from(engine: Engine, path: Path, records: Records) -> None:
    """Weights from a checkpoint or a safetensors file; a head for other classes begins anew, and is named."""
    head = engine.begin_with(weights_of(path), str(path))
    if head:
        classes = engine.module.classes
        records.say(f"{path} has a head for other classes: {', '.join(head)} begin anew, for {classes} classes")


def roll_back(run: Run, engine: Engine, judge: Judge, records: Records, fault: RollBack) -> None:
    """Back to the last checkpoint, to do everything after it again without the faulty update."""
    left_out = engine.left_out | {fault.update}
    newest = engine.gather(checkpoint.newest(run.path) if engine.place.leads else None)[0]  # one rank decides
    if newest is None:
        raise ConfigError(
            f"{fault} on_nonfinite.policy=rollback, and there is no checkpoint to go back to: set checkpoint.every, or "
            "take policy=skip."
        ) from fault
    closed = load(run, engine, judge, newest)
    records.resume(engine.updates, closed)
    engine.left_out |= left_out
    records.say(f"{fault} Gone back to update {engine.updates}; update {fault.update} is left out.")


def finish(run: Run, engine: Engine, judge: Judge, records: Records) -> dict[str, Any]:
    """The final evaluation, a picture, and the summary; `finished` knows a run by it."""
    settings = run.validate
    attack = settings.final or settings.attack
    began = time.monotonic()
    found = judge.evaluate(attack, None if settings.final else settings.images)
    for other in settings.beside:
        found |= judge.evaluate(other, None if settings.final else settings.images)
    records.add(run.updates, found)
    shown = getattr(run.objective, "attack", None) or attack
    if shown is not None:
        last = at(shown, run.updates - 1, run.updates)  # schedules in it become numbers
        records.picture(run.updates, "attack", picture(run, engine, last))
    summary = {**found, "updates": run.updates, "evaluation/seconds": time.monotonic() - began, **records.totals()}
    if settings.probe.attack is not None:
        summary["probe/collapses"] = judge.judged.collapses
    records.close_segment(run.updates)
    records.summary(summary)
    return summary


def picture(run: Run, engine: Engine, attack: Attack, count: int = 8) -> bytes:
    """A PNG of the first validation images, clean, attacked, and their difference, with what the network says."""
    batch = next(filter(len, run.data.validation_batches(Place(), count))).to(engine.device, engine.dtype)
    key = Key(run.seed).of("picture").rows(batch.sample)
    with engine.whole() as network, judged(network, key), torch.no_grad():
        adversarial = attack(network, batch.images, batch.targets, key)
        logits = network(batch.images), network(adversarial)
    return attack_picture(batch.images, adversarial, batch.targets, *logits, run.data.names())


def deterministic(run: Run, place: Place) -> None:
    """Bit-equal repetition: PyTorch's deterministic algorithms where the run asks for them on CUDA."""
    if place.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it deterministic matrix products raise
        torch.use_deterministic_algorithms(run.deterministic, warn_only=False)
        torch.backends.cudnn.benchmark = not run.deterministic
