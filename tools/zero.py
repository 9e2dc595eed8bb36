"""A run at every ZeRO stage and number of ranks: differences in its numbers, collectives, memory of a rank."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read import paths
from robust_train.read.errors import RunError, main_guard

if TYPE_CHECKING:
    from robust_train.run import Run

EPILOG = """examples
  python -m tools.zero configs/demo.yaml --ranks 1 2
  python -m tools.zero configs/demo.yaml engine.copy=true --layouts 3 --ranks 2
  python -m tools.zero RUN.yaml --layouts 1 3 --ranks 2 --updates 2

Each layout is a job of processes of its own on this machine (gloo, CPU), with the run's first batches. weights and
metrics: the largest difference from plain PyTorch on one rank after the last update. gathers, others: collectives of
the last update by this rank, the first of them all-gathers of weights. memory: the most that a rank ever held, the
interpreter and its libraries (about 0.5 GiB) included; before: what it held when its engine stood.
"""
PLAIN = "plain"


@main_guard()
def main(words: list[str]) -> None:
    """Do each layout, show the table, and write the figures where asked."""
    form = argparse.RawDescriptionHelpFormatter
    parser = paths.Parser("python -m tools.zero", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("run", help="the run: a YAML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="processes (%(default)s)")
    parser.add_argument("--layouts", nargs="+", default=["0", "1", "2", "3"], help="ZeRO stages, or plain")
    parser.add_argument("--updates", type=int, default=3, help="updates of each (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    asked = parser.parse_intermixed_args(words)

    from robust_train.check import check
    from robust_train.run import Run

    run = Run.load(Path(asked.run), asked.settings)
    for world in asked.ranks:
        check(run, world)
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, folder=folder)
        reference = job(run, PLAIN, 1, asked.updates)
        rows = [reference]
        for layout in asked.layouts:
            rows += [job(run, layout, world, asked.updates) for world in asked.ranks]
        figures = [compared(row, reference) for row in rows]
    show(asked.run, figures)
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def job(run: Run, layout: str, world: int, updates: int) -> dict[str, Any]:
    """What the leading rank of a layout found. Raises RunError where a rank ends otherwise."""
    import torch

    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        work = (run.dump(), layout, world, updates, folder)
        ranks = [context.Process(target=rank_of, args=(rank, *work)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise RunError(f"layout {layout} on {world} ranks ended with {[rank.exitcode for rank in ranks]}")
        return torch.load(Path(folder) / "found", weights_only=True)


def rank_of(rank: int, said: str, layout: str, world: int, updates: int, folder: str) -> None:
    """One process of a layout: `updates` updates of the run as the loop does them; the leading one says what it saw."""
    import torch
    from torch import distributed

    from robust_train.engines.plain import PlainEngine
    from robust_train.keyed import Key
    from robust_train.nouns import Place, at
    from robust_train.run import Run

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    run, place = Run.load(said), Place(rank, world, "cpu")
    make: Any = PlainEngine
    if layout != PLAIN:
        from robust_train.engines.deepspeed import DeepSpeedEngine as make

        changes: Any = {"zero": int(layout), "copy": run.engine.copy and layout == "3"}
        run = replace(run, engine=replace(run.engine, **changes))
    run.data.prepare()
    seconds, metrics = [], {}
    with make(run, place) as engine:
        before = peak()
        for update, batch in zip(range(updates), run.batches(place, 0), strict=False):
            began, key = time.perf_counter(), Key(run.seed).at(update)
            objective = at(run.objective, update, run.updates)
            with collectives() as counts:
                for part in engine.micro_batches(batch):
                    rows = key.rows(part.position)
                    part = run.mix(part, rows)
                    engine.backward(objective(engine.network, part, rows, engine.state))
                metrics = engine.step()
            seconds.append(time.perf_counter() - began)
        most = peak()
        weights = engine.module.model.state_dict()
    if rank == 0:
        gathers = sum(count for name, count in counts.items() if "gather" in name)
        found = {"layout": layout, "ranks": world, "gathers": gathers, "others": sum(counts.values()) - gathers}
        found |= {"seconds": min(seconds), "before": before, "memory": most, "metrics": metrics, "weights": weights}
        torch.save(found, Path(folder) / "found")
    distributed.barrier()
    distributed.destroy_process_group()


def peak() -> int:
    """The most bytes of memory that this process ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@contextmanager
def collectives() -> Iterator[Counter[str]]:
    """Counts the collectives that are done inside, by torch's names for them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: Counter[str] = Counter()

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kind, _, name = function._schema.name.partition("::")
            seen[name] += kind == "c10d"
            return function(*args, **(kwargs or {}))

    with Counts():
        yield seen
    for name in [name for name, count in seen.items() if not count]:
        del seen[name]


def compared(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """A row with its differences from the reference in place of weights and metrics."""
    theirs, numbers = reference["weights"], reference["metrics"]
    weights = max(float((value - theirs[name]).abs().max()) for name, value in row["weights"].items() if value.numel())
    metrics = max(abs(value - numbers[name]) for name, value in row["metrics"].items())
    return {**row, "weights": weights, "metrics": metrics}


def show(name: str, figures: list[dict[str, Any]]) -> None:
    """The table, a row a layout, as Markdown."""
    print(f"{name}: weights and metrics differ from plain PyTorch on one rank by at most")
    print("| layout | ranks | weights | metrics | gathers | others | s an update | GiB before | GiB at most |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in figures:
        layout = row["layout"] if row["layout"] == PLAIN else f"ZeRO {row['layout']}"
        held = " | ".join(f"{row[what] / 2**30:.2f}" for what in ("before", "memory"))
        print(
            f"| {layout} | {row['ranks']} | {row['weights']:.1e} | {row['metrics']:.1e} | {row['gathers']} | "
            f"{row['others']} | {row['seconds']:.2f} | {held} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
