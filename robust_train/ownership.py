"""Whose a run's folder is: the run that it holds, what of a run may change when it goes on, and one job at a time."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from robust_train import checkpoint, disk
from robust_train.check import writable
from robust_train.nouns import Objective, Place, Schedule, within
from robust_train.read import uses
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.parse import difference, load_tree, tree_of
from robust_train.read.paths import path_fields, word
from robust_train.read.paths import place as place_of
from robust_train.read.text import json_of
from robust_train.run import Run

PATIENCE = 20.0  # seconds that a folder may still be held by a process that was killed
FREE = ("name", "folder", "records", "cluster", "engine", "checkpoint", "changed_data")
"""Fields that may change when a run goes on: they never change its numbers."""
SHOWN = 10  # shards that are named where more have changed


def finished(run: Run) -> dict[str, Any]:
    """The summary of a run that is done; else nothing."""
    path = run.path / "summary.json"
    remedy = "Remove it: the same command goes on from the newest checkpoint, and writes it anew."
    summary = json_of(path, "the run's summary", remedy, dict) if path.exists() else {}
    return summary if summary.get("updates") == run.updates else {}


def prepare(run: Run, place: Place) -> None:
    """The run's folder with its run.yaml; a different run in it is refused with the difference. Data made ready."""
    same(run)
    if finished(run):  # its folder tells of the run as it was
        return
    if not checkpoint.saved(run.path):
        branched(run)
    if place.leads:
        writable(run.path)
    run.data.prepare()
    same_data(run)
    if place.leads:
        keep_sources(run)
        if found := lineage(run):
            disk.write_json(run.path / "lineage.json", found)
        disk.write_text(run.path / "run.yaml", said(run))


def keep_sources(run: Run) -> None:
    """The run's folder, and in it the source of the modules of its own (`uses:`), for processes that have them not."""
    run.path.mkdir(parents=True, exist_ok=True)
    for path, text in uses.sources(run.uses).items():
        file = run.path / uses.FOLDER / path
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.write_text(file, text)


@contextmanager
def alone(run: Run, place: Place, patience: float | None = None) -> Iterator[None]:
    """Hold the run's folder against a second job, which would write over the first one's metrics and checkpoints.

    The system lets go of it when the process ends, however it ends. patience: seconds that one just killed may take to
    be gone; None: PATIENCE. Nothing is held where the file system has no locks.
    """
    if not place.leads:
        yield
        return
    patience = PATIENCE if patience is None else patience
    with (run.path / "lock").open("a") as file:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began > patience:
                    raise ConfigError(
                        f"{run.path} is being written by another process: the same run is at work already. Let it end, "
                        "end it, or give this one another folder (folder=runs/NAME)."
                    ) from None
                time.sleep(0.2)
            except OSError:  # no locks here
                break
        yield


def same(run: Run) -> None:
    """Refuse a folder that holds another run. One that was refused before its first update holds none.

    Paths are compared by where they lead; those of data not at all: `same_data` looks at what they lead to.
    """
    said, metrics = run.path / "run.yaml", run.path / "metrics.jsonl"
    begun = checkpoint.saved(run.path) or (metrics.exists() and metrics.stat().st_size)
    if not said.exists() or not begun:
        return
    now = Run.load(run.dump())  # as it will be read again: a run made in Python may say 2 where YAML's is 2.0
    there = replace(Run.load(said), **{name: getattr(now, name) for name in FREE})
    changed = difference(as_compared(there), as_compared(now))
    why = ""
    if [line.partition(":")[0] for line in changed] == ["updates"]:
        why = in_place(there, now)
        changed = changed if why else []
    if changed:
        raise ConfigError(
            f"{run.path} holds another run:\n  " + "\n  ".join(changed) + f"\n{why}Give this one another folder "
            f"(folder=runs/NAME), where it may go on from this one's last checkpoint: branch={run.folder}."
        )


def in_place(there: Run, now: Run) -> str:
    """Why a run's updates cannot be raised in its own folder; nothing where what is done would be done in the same way.

    So it is where no schedule so far depends on the number of updates, and no distance is a share of it.
    """
    if now.updates < there.updates:
        return "Updates that are done cannot be taken back. "
    done = max((int(path.name) for path in checkpoint.saved(now.path)), default=0)
    for place, schedule in within(there, Schedule):
        turns = {round(turn) for turn in (*schedule.turns(there.updates), *schedule.turns(now.updates))}
        grid = {done * share // 1000 for share in range(1000)} | turns | {turn - 1 for turn in turns} | {done - 1}
        if any(schedule(u, there.updates) != schedule(u, now.updates) for u in grid if 0 <= u < done):
            return f"{place} would have been another so far in a run of so many updates. "
    for name, every in (("validate.every", there.validate.every), ("validate.probe.every", there.validate.probe.every)):
        if isinstance(every, str) and done:
            return f"{name}={every} is a share of the run. "
    if type(there.objective).settle is not Objective.settle and done:
        return f"objective {there.objective.use} may look at the number of updates. "
    return ""


def branched(run: Run) -> Path | None:
    """The checkpoint that a run branches from: the one it names, or of a run's folder the newest. ConfigError."""
    if run.branch is None:
        return None
    path = Path(word(run.branch))
    if (path / "checkpoints").is_dir():
        newest = checkpoint.newest(path)
        if newest is None:
            raise ConfigError(f"branch={run.branch}: {path} holds no checkpoint yet. Let that run reach its first one.")
        path = newest
    position = path / "position.json"
    if not position.is_file():
        raise ConfigError(f"branch={run.branch} is no checkpoint of a run: name a run's folder, or a checkpoint in it.")
    done = int(json.loads(position.read_text(encoding="utf-8"))["updates"])
    if done >= run.updates:
        raise ConfigError(
            f"branch={run.branch} has done {done:,} updates, and this run has {run.updates:,}: say updates={done + 1} "
            "or more"
        )
    there = load_tree(path / "run.yaml").get("optimiser", {}).get("name")
    if there != run.optimiser.name:
        raise ConfigError(
            f"branch={run.branch} was trained with optimiser.name={there}, whose state {run.optimiser.name} cannot go "
            f"on with. Keep it, or begin with the weights alone: branch=null start={path}."
        )
    return path


def lineage(run: Run) -> list[dict[str, Any]]:
    """What a run branches from, what that branches from, and so on: name, checkpoint, updates, sha256 of its weights.

    Kept in lineage.json: the folders named there may be gone by the time it is read.
    """
    kept = run.path / "lineage.json"
    if kept.is_file():
        return list(json.loads(kept.read_text(encoding="utf-8")))
    path = branched(run)
    if path is None:
        return []
    manifest = checkpoint.verify(path)
    above = path.parent.parent / "lineage.json"
    own = {
        "run": load_tree(path / "run.yaml").get("name"),
        "checkpoint": str(path),
        "updates": int(json.loads((path / "position.json").read_text(encoding="utf-8"))["updates"]),
        "weights": manifest["sha256"]["weights.safetensors"],
    }
    return [own, *(json.loads(above.read_text(encoding="utf-8")) if above.is_file() else [])]


def said(run: Run) -> str:
    """The run as its run.yaml says it, what it branches from at its head."""
    head = ""
    for one in lineage(run):
        head += f"# branches from {one['checkpoint']} ({one['run']}, update {one['updates']:,}, "
        head += f"weights {one['weights'][:12]})\n"
    return head + run.dump()


def same_data(run: Run) -> list[str]:
    """Refuse training or validation data that are not those of the folder's newest checkpoint, unless the run says so.

    What has changed, in words. Raises DataError with the names.
    """
    newest, there = remembered(run.path)
    if newest is None:
        return []
    changed = unlike(there, run.data.known())
    if changed and run.changed_data == "refuse":
        raise DataError(
            f"{run.path} was trained on other data until update {int(newest.name):,}:\n  "
            + "\n  ".join(changed)
            + "\nPut the data back as they were, give the run another folder (folder=runs/NAME), or go on with these "
            "from here on (changed_data=accept)."
        )
    return changed


def remembered(folder: Path) -> tuple[Path | None, Mapping[str, str]]:
    """The newest checkpoint whose data.json can be read, and what it says; whether it is whole is another question."""
    for path in reversed(checkpoint.saved(folder)):
        try:
            said = json.loads((path / "data.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(said, dict):
            return path, said
    return None, {}


def unlike(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each shard that is not what it was, is gone, or is new; and one where only their order differs."""
    lines = [f"{name} has changed" for name in there if name in now and there[name] != now[name]]
    lines += [f"{name} is gone" for name in there if name not in now]
    lines += [f"{name} is new" for name in now if name not in there]
    if list(there.values()) == list(now.values()):  # renamed or moved, and the same in the same order
        return []
    if not lines and list(there) != list(now):
        lines = ["the shards stand in another order"]
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def as_compared(run: Run) -> Any:
    """The run as a tree, each path by where it leads, and of its data none: nor workers, which change no number."""
    tree = _spelled(replace(run, data=None))  # type: ignore[arg-type]
    return {**tree, "data": _without(_spelled(run.data, keep=False))}


def _spelled(value: Any, keep: bool = True) -> Any:
    """A value as a tree, its path fields by where they lead, or left out."""
    if is_dataclass(value) and not isinstance(value, type):
        tree, own = tree_of(value), path_fields(type(value))
        inside = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        for name, one in inside.items():
            if name in own:
                tree[name] = _leads(one) if keep else None
            else:
                tree[name] = _spelled(one, keep)
        return tree
    if isinstance(value, (tuple, list)):
        return [_spelled(entry, keep) for entry in value]
    if isinstance(value, Mapping):
        return {name: _spelled(entry, keep) for name, entry in value.items()}
    return tree_of(value)


def _leads(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_leads(one) for one in value]
    return None if value is None else place_of(value)


def _without(tree: Any) -> Any:
    """A data set's tree without `workers`, however deep."""
    if isinstance(tree, Mapping):
        return {name: _without(entry) for name, entry in tree.items() if name != "workers"}
    return tree
