"""The one loop of every evaluation: what is lacking is judged, here or on a cluster's devices, and kept.

found = evaluate(Robustness((Linf(8 / 255),)), {"net": network}, data)
report = evaluator.report(found)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from robust_train.evaluate.ahead import Ahead, asked, beforehand, first
from robust_train.evaluate.columns import Columns, joined
from robust_train.evaluate.store import PICTURE, WHOLE, At, Job, Store, is_rows
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.models.foreign import moded
from robust_train.models.network import Moded
from robust_train.nouns import Batch, Dataset, Evaluator, Piece, Place, Tensors
from robust_train.read.errors import ConfigError

Tell = Callable[[str, float, str], None]
"""Told what was done just now, which share of all work is done (0 to 1), and the accuracies so far."""


def silent(now: str, share: float, so_far: str) -> None:
    """Who is told nothing."""


@dataclass(frozen=True)
class Task:
    """All that a process needs to know to judge, beside networks and images: a value that travels."""

    evaluator: Evaluator
    pieces: Mapping[str, Piece]
    seed: int
    totals: Mapping[str, int]  # images of each set that are judged


Deal = Callable[[Task, Sequence[Job]], Iterable[tuple[At, Tensors]]]
"""Who does the jobs where it is not this process: on a cluster's devices."""


def evaluate(
    evaluator: Evaluator,
    networks: Mapping[str, Any],
    data: Dataset,
    seed: int = 0,
    device: str = "cpu",
    store: Store | None = None,
    deal: Deal | None = None,
    tell: Tell = silent,
    workers: int = 0,
) -> Columns:
    """All that the evaluator asks for, of which only what the store lacks is judged. Killed, it goes on from there.

    workers: processes that decode and corrupt before the device asks; 0: this one. deal: who has workers of its own.
    Whole pieces, and those that depend on what others found, come in rounds. Raises ConfigError where there are no
    images.
    """
    store, networks = Store() if store is None else store, Held(networks)
    store.begin(evaluator, data, seed)
    if not store.total(""):
        raise ConfigError("there are no images to judge: name validation shards (tools.eval: --data)")
    found = Columns(store)
    while True:
        before = len(store.pieces)
        store.expect(evaluator.pieces(networks, data, found))
        jobs, fits = store.jobs(), store.fits()
        if not jobs and not fits and len(store.pieces) == before:
            return found
        task = Task(evaluator, store.pieces, seed, {on: store.total(on) for on in {job.on for job in jobs}})
        with Ahead(data, task, workers) if workers and jobs and deal is None else nullcontext() as ahead:
            done = work(networks, data, task, jobs, device, ahead) if deal is None or not jobs else deal(task, jobs)
            for (number, name), tensors in done:
                store.put(number, name, tensors)
                if not is_rows(store.pieces[name]):
                    tell(f"{name}, chunk {number}", store.share, store.standing)
        for piece in fits:
            whole = {name: joined([store.get(n, name) for n in store.numbers(name)]) for name in piece.needs}
            store.put(WHOLE, piece.name, evaluator.judge(networks, NOTHING, piece, whole, Key(seed)))
            tell(piece.name, store.share, store.standing)


class Held(Mapping[str, Moded]):
    """Networks as evaluators see them, each fetched when it is asked for: those that are not ours are `Foreign`."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    def __getitem__(self, name: str) -> Moded:
        return moded(self.given[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


def work(
    networks: Mapping[str, Any],
    data: Dataset,
    task: Task,
    jobs: Sequence[Job],
    device: str,
    ahead: Ahead | None = None,
) -> Iterator[tuple[At, Tensors]]:
    """What each job finds, as it comes. Images are decoded of no chunk but the jobs'; ahead: who decodes them."""
    if ahead is not None:
        for job in jobs:
            ahead.want(job)
        for job in jobs:
            for name, tensors in judged(networks, ahead.take(job.on, job.number).to(device), task, job, ahead):
                yield (job.number, name), tensors
        return
    for on, some in groupby(jobs, lambda job: job.on):
        known = {job.number: job for job in some}
        own = next((p.data for p in task.pieces.values() if p.on == on and p.data is not None), data)
        reading = chunks(own, sorted(known), task.evaluator.chunk, task.totals[on], task.evaluator.images, device)
        for number, raw in reading:
            for name, tensors in judged(Held(networks), raw.to(device), task, known[number]):
                yield (number, name), tensors


def chunks(
    data: Dataset, numbers: list[int], chunk: int, total: int, limit: int | None, device: str = "cpu"
) -> Iterator[tuple[int, Batch]]:
    """Some chunks with their numbers, in order: of a share of all as a rank has it in one reading, else each alone."""
    count = -(-total // chunk)
    step = numbers[1] - numbers[0] if len(numbers) > 1 else count
    share = numbers[0] < step and numbers == list(range(numbers[0], count, step))
    places = [Place(numbers[0], step, device)] if share else [Place(number, count, device) for number in numbers]
    for place in places:
        yield from place.numbered(data.validation_batches(place, chunk, limit))


def judged(
    networks: Mapping[str, Any], batch: Batch, task: Task, job: Job, ahead: Ahead | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The lacking pieces of one chunk, each after those it needs; of these what is not kept lives as long as needed."""
    key, made, lacking, names = Key(task.seed), dict(job.before), set(job.lacking), asked(task.pieces, job)
    ready = set() if ahead is None else set(beforehand(task.pieces, job))
    needed = Counter(other for name in names for other in task.pieces[name].needs)  # how many still need it
    for name in names:
        piece = task.pieces[name]
        rows = first(batch, piece)
        found: Any = {}
        if name in ready and ahead is not None:
            device = str(batch.images.device)
            found = {what: lean.to(device) for what, lean in ahead.take(job.on, job.number, name).items()}
        elif len(rows) and is_rows(piece):
            at = rows.position.to(torch.int32)
            found = {"sample": rows.sample, "labels": labels_of(rows.targets), "position": at}
        elif len(rows):
            before = {other: made[other] for other in piece.needs}
            found = task.evaluator.judge(networks, rows, piece, before, key)
        for other in piece.needs:
            needed[other] -= 1
            if not needed[other] and not task.pieces[other].kept:
                del made[other]
        if name in lacking:
            found = {what: tensor.detach().cpu() for what, tensor in found.items()}
            yield name, found
        made[name] = {what: tensor for what, tensor in found.items() if not what.startswith(PICTURE)}


NOTHING: Any = None
"""The images of a whole piece."""
