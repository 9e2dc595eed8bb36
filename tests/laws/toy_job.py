"""A rank of a toy run, as a process that may kill itself: `rank(environment, FOLDER, ENGINE[, WHEN])`.

ENGINE: plain, or the ZeRO stage of DeepSpeed. WHEN: "update 4" (before it, on the last rank), or "manifest" (while the
second checkpoint is written, on the first one).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import torch

from robust_train import disk, job
from robust_train.attacks.pgd import PGD
from robust_train.engines.place import place_of_environment
from robust_train.engines.plain import PlainEngine
from robust_train.engines.schedule import Cosine
from robust_train.nouns import Batch, Place
from robust_train.objectives.generalized import Generalized
from robust_train.run import Run
from robust_train.settings.average import Average
from robust_train.settings.execution import Execution
from robust_train.settings.keep import Keep
from robust_train.settings.optimiser import Optimiser
from robust_train.settings.validate import Probe, Validate
from robust_train.threats.linf import Linf
from tests.toys import ToyImages, register, toy_run

UPDATES, EVERY = 6, 3


def toy_job_run(folder: str, engine: str) -> Run:
    """What a restart must bring back: AdamW's moments and counters, an average, running statistics, counts, a probe."""
    pgd = PGD(Linf(0.1), 2, 0.05)
    return toy_run(
        Generalized((pgd, replace(pgd, steps=1)), "sample"),
        folder,
        updates=UPDATES,
        optimiser=Optimiser(name="adamw", lr=Cosine(0.01, warmup=2.0), weight_decay=0.1),
        average=Average(0.9),
        checkpoint=Keep(EVERY),
        validate=Validate(every=2, attack=pgd, chunk=8, probe=Probe(every=2, attack=pgd, images=8)),
        engine=Execution(zero=0 if engine == "plain" else int(engine)),  # type: ignore[arg-type]
    )


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def batches_until(
    last: int, plain, data: ToyImages, place: Place, batch: int, seed: int, start: int
) -> Iterator[Batch]:
    for update, drawn in enumerate(plain(data, place, batch, seed, start), start):
        if update == last and place.rank == place.world - 1:
            kill()
        yield drawn


def finish_or_kill(plain, path) -> str:
    if path.name == "manifest.json" and path.parent.name.startswith(f"{UPDATES:08d}"):
        kill()
    return plain(path)


def rank(environment: dict[str, str], folder: str, engine: str, when: str = "") -> None:
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(1)
    register()
    run = toy_job_run(folder, engine)
    if when.startswith("update"):
        last, plain = int(when.split()[1]), ToyImages.batches
        patch = mock.patch.object(ToyImages, "batches", lambda *args: batches_until(last, plain, *args))
    else:
        finish = disk.settle
        patch = mock.patch.object(disk, "settle", lambda path: finish_or_kill(finish, path) if when else finish(path))
    with patch:
        if engine == "plain":
            job.do(run, PlainEngine, Place())
        else:
            from robust_train.engines.deepspeed import DeepSpeedEngine

            job.do(run, DeepSpeedEngine, place_of_environment())
