"""Many runs on one Ray cluster: as many at once as find room, each in processes of its own.

    summaries = sweep({"seed0/a": run, "seed0/b": run}, retries=2, address=None)

one device      a task that does what `python -m robust_train` does
several         launch.cluster.fit inside a task without CPUs of its own
faults          a run that dies or raises is started again, `retries` times, and goes on from its last whole checkpoint;
                bad input and bugs are not tried again. No run hears of another's end
what they say   goes to log.txt in each run's folder, every start after the one before
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.launch.address import address_of
from robust_train.launch.board import Board
from robust_train.launch.cluster import INSIDE, enter, enter_home, fit, joined, nodes, room
from robust_train.launch.wire import incurable
from robust_train.read import uses
from robust_train.read.errors import ConfigError, RunError
from robust_train.read.paths import place

if TYPE_CHECKING:
    from robust_train.run import Run
    from robust_train.settings.cluster import Cluster

PERIOD = 0.5  # seconds between two looks at the runs
LOG = "log.txt"
Summary = dict[str, Any]


class Unfinished(RunError):
    """Some of the runs could not be done; all others are. `done`: their summaries. `failed`: why, by name."""

    def __init__(self, done: Mapping[str, Summary], failed: Mapping[str, str]) -> None:
        count, whole = len(failed), len(failed) + len(done)
        lines = [f"  {name}: {reason}" for name, reason in failed.items()]
        super().__init__(
            "\n".join([f"{count} of {whole} runs failed:", *lines])
            + "\nThe others are done. Put these right and give the same command again: what is done is not done anew."
        )
        self.done, self.failed = dict(done), dict(failed)


@dataclass(frozen=True)
class Trouble:
    """Why a run ended before its end."""

    reason: str  # one line
    final: bool  # whether another try must end in the same way


def sweep(runs: Mapping[str, Run], retries: int = 2, address: str | None = None) -> dict[str, Summary]:
    """Do all runs; the summary of each, by its name.

    address: the cluster; None: the one this process runs inside (a submitted job, or RAY_ADDRESS), else a local one.

    Runs that are done are not started again. They begin in the order in which they are given, none before those ahead
    of it have found room. Raises ConfigError before anything starts where a folder holds another run, or the cluster
    can never hold one of them; Unfinished, after all others are done, where some failed for good.
    """
    from robust_train import ownership

    home = enter_home()
    if INSIDE in os.environ:
        print(f"{len(runs)} runs: everything is written below {home}; the same command again goes on there", flush=True)
    apart(runs)
    for run in runs.values():
        ownership.same(run)
    done = {name: summary for name, run in runs.items() if (summary := ownership.finished(run))}
    failed: dict[str, str] = {}
    if len(done) == len(runs):
        print(f"all {len(runs)} runs were done before", file=sys.stderr, flush=True)
    else:
        # Ray prints on stdout that a process died; the board says it in its own words, and stdout is for the table
        with redirect_stdout(io.StringIO()), joined(address_of(address)):
            pack(runs, home, retries, done, failed)
    done = {name: done[name] for name in runs if name in done}
    if failed:
        raise Unfinished(done, failed)
    return done


def pack(runs: Mapping[str, Run], home: Path, retries: int, done: dict[str, Summary], failed: dict[str, str]) -> None:
    """Start runs as they find room and hear their ends, until each that was not in `done` is there or in `failed`."""
    from robust_train import ownership

    waiting = deque(name for name in runs if name not in done)
    for name in waiting:
        roomy(name, runs[name])
    running: dict[Any, str] = {}
    tries: Counter[str] = Counter()
    with Board(runs, done) as board:
        while waiting or running:
            while waiting and fits(nodes(), [runs[name].cluster for name in (*running.values(), waiting[0])]):
                name = waiting.popleft()
                tries[name] += 1
                board.started(name)
                running[start(runs[name], home)] = name
            if not running:  # a node is gone, and with it the room
                roomy(waiting[0], runs[waiting[0]])
                continue
            for task in ended(list(running)):
                name = running.pop(task)
                trouble = outcome(task)
                if trouble is None:
                    done[name] = ownership.finished(runs[name])
                    board.ended(name, done[name])
                    continue
                again = not trouble.final and tries[name] <= retries
                board.failed(name, trouble.reason, tries[name], retries + 1, again)
                if again:
                    waiting.appendleft(name)
                else:
                    failed[name] = trouble.reason
            board.show()


def apart(runs: Mapping[str, Run]) -> None:
    """Refuse two runs in one folder."""
    taken: dict[str, str] = {}
    for name, run in runs.items():
        other = taken.setdefault(place(run.folder), name)
        if other != name:
            raise ConfigError(f"{other} and {name} are both to be written to {run.folder}: give each its own folder")


def roomy(name: str, run: Run) -> None:
    """Raise ConfigError where the cluster can never hold the run."""
    try:
        room(run.cluster, nodes())
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def fits(there: Iterable[Mapping[str, float]], clusters: Iterable[Cluster]) -> bool:
    """Whether the processes of all these runs find room on the nodes together, the largest placed first."""
    free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in there]
    for cluster in sorted(clusters, key=lambda one: (not one.gpu, -one.cpus)):
        for _ in range(cluster.devices):
            held = (node for node in free if node[0] > cluster.cpus - 1e-6 and node[1] >= int(cluster.gpu))
            node = min(held, key=lambda node: (node[1], node[0]), default=None)  # where the least is left unused
            if node is None:
                return False
            node[0], node[1] = node[0] - cluster.cpus, node[1] - int(cluster.gpu)
    return True


def start(run: Run, home: Path) -> Any:
    """The task that does a run; its result is None, or what went wrong."""
    import ray

    from robust_train import ownership

    ownership.keep_sources(replace(run, folder=str(home / run.path)))
    cluster = run.cluster
    alone = cluster.devices == 1
    # A process of its own for each try (max_calls): what a library leaves behind in one is not found by the next.
    reserved: dict[str, Any] = {"num_cpus": cluster.cpus if alone else 0, "num_gpus": int(cluster.gpu and alone)}
    task: Any = ray.remote(**reserved, max_retries=0, max_calls=1)(member)
    return task.remote(run.dump(), str(home), str(home / run.path / uses.FOLDER))


def ended(tasks: list[Any]) -> list[Any]:
    """Those of the tasks that have ended by now, or within a short while."""
    import ray

    return ray.wait(tasks, num_returns=1, timeout=PERIOD)[0]


def outcome(task: Any) -> Trouble | None:
    """What became of a task that has ended; None: all is well."""
    import ray

    try:
        return ray.get(task)
    except ray.exceptions.OutOfMemoryError:
        return Trouble("Ray ended its process, since its machine's memory was used up", final=False)
    except ray.exceptions.WorkerCrashedError:
        return Trouble(
            "its process was killed; memory is the common reason: a smaller engine.micro_batch needs less", False
        )
    except ray.exceptions.RayError as error:  # its node is gone, or what it needs of the cluster is not there
        return Trouble(" ".join(str(error).split())[:300], final=False)


def member(text: str, home: str, modules: str) -> Trouble | None:
    """A run from beginning to end, in a process of the cluster; what went wrong, if something did."""
    from robust_train.run import Run

    try:
        uses.search(Path(modules))
        run = Run.load(text)
        enter(Path(home), run)
        with logged(run.path / LOG):
            try:
                several(run, Path(home)) if run.cluster.devices > 1 else alone(run)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        return Trouble(said(error), incurable(error))
    return None


def alone(run: Run) -> None:
    """A run on one device, in this process."""
    import torch

    from robust_train import command, job
    from robust_train.engines.plain import PlainEngine
    from robust_train.nouns import Place

    if not run.cluster.gpu:
        torch.set_num_threads(max(1, int(run.cluster.cpus)))  # the cores that are reserved, not all of the machine's
    job.do(run, PlainEngine, Place(device=command.device(run) if run.cluster.gpu else "cpu"))


def several(run: Run, home: Path) -> None:
    """A run on several devices, by Ray Train from here; faults are tried again by the sweep, which says so."""
    (run.path / "ray").mkdir(exist_ok=True)
    with joined("auto"):  # this process is in a cluster already
        fit(replace(run, cluster=replace(run.cluster, restarts=0)), home)


def said(error: BaseException) -> str:
    """An error's own words; of a bug its kind too. What Ray wraps is told as it was raised."""
    cause = getattr(error, "cause", None)
    if not isinstance(error, RunError) and isinstance(cause, BaseException):
        return said(cause)
    words = str(error).strip() or type(error).__name__
    return words if isinstance(error, RunError) else f"{type(error).__name__}: {words.splitlines()[-1]}"


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What this process prints goes to the end of a file, a line as soon as it is whole."""
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        print(f"-- {datetime.now(UTC).isoformat(timespec='seconds')}, {os.uname().nodename}, process {os.getpid()}")
        yield
