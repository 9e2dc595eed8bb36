"""Deal an evaluation's chunks over the devices of a Ray cluster: the same verdicts, sooner."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from robust_train.launch.cluster import joined, nodes
from robust_train.read.errors import ConfigError
from robust_train.read.uses import Carried

if TYPE_CHECKING:
    from robust_train.evaluate.ahead import Ahead
    from robust_train.evaluate.store import At, Job
    from robust_train.evaluate.work import Deal, Task
    from robust_train.nouns import Tensors

TIMES = 3  # a process that dies is started again so often, and its jobs are done again


class Subject(Protocol):
    """What is judged, as a value that travels: networks and their images (robust_train.subject), a panel of many."""

    def at(self, folder: str) -> Subject:
        """The same, its relative paths taken from `folder`."""

    def networks(self, device: str) -> Mapping[str, Any]:
        """Those that are judged, by name."""

    def images(self) -> Any:
        """What they are judged on, where pieces name no images of their own."""


def dealt(subject: Subject, devices: int, gpu: bool, address: str | None = None, workers: int = 0) -> Deal:
    """Who does an evaluation's work on `devices` processes of a cluster, one a device; None: a local one.

    Each gets a chunk when it has done one, so that none idles while a chunk is left. workers: processes beside each
    that decode the chunk which it will probably get next; whoever is free first gets it all the same. Raises
    ConfigError where the cluster has not so many devices.
    """

    def deal(task: Task, jobs: Sequence[Job]) -> Iterator[tuple[At, Tensors]]:
        with joined(address):
            import ray

            kind = "GPU" if gpu else "CPU"
            there = int(sum(node.get(kind, 0) for node in nodes()))
            if there < devices:
                raise ConfigError(
                    f"the cluster has {there} {kind}s, --devices asks for {devices}: say --devices {there}"
                )
            options: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(gpu), "max_restarts": TIMES}
            options |= {"max_concurrency": 2} if workers else {}  # one at work, one told what comes next
            each = ray.remote(**options, max_task_retries=TIMES)(Worker)
            what, how = Carried(subject.at(str(Path.cwd()))), Carried(task)
            free: list[Any] = [each.remote(what, how, gpu, workers) for _ in range(min(devices, len(jobs)))]
            left = Left(jobs)
            running: dict[Any, Any] = {}
            while free or running:
                for worker in free:
                    if (job := left.next(worker)) is not None:
                        running[worker.judge.options(num_returns="streaming").remote(job)] = worker
                for worker in free if workers else ():
                    if (coming := left.promise(worker)) is not None:
                        worker.expect.remote(coming)
                free = []
                if running:
                    ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)
                    stream: Any = ready[0]
                    try:
                        reference = next(stream)
                    except StopIteration:
                        free = [running.pop(stream)]
                        continue
                    yield ray.get(reference)

    return deal


class Left:
    """The jobs that nobody has begun. One may be promised to a worker, which reads ahead for it; that binds nobody."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._free = deque(jobs)
        self._promised: dict[Any, Job] = {}

    def next(self, worker: Any) -> Job | None:
        """What a worker that is free does now: what it was promised, else what is free, else another's promise."""
        if worker in self._promised:
            return self._promised.pop(worker)
        if self._free:
            return self._free.popleft()
        return self._promised.pop(next(iter(self._promised))) if self._promised else None

    def promise(self, worker: Any) -> Job | None:
        """What it will probably do next; None where nothing is free."""
        if not self._free:
            return None
        self._promised[worker] = self._free.popleft()
        return self._promised[worker]


class Worker:
    """One process and its device."""

    def __init__(self, subject: Carried, task: Carried, gpu: bool, workers: int = 0) -> None:
        import torch

        from robust_train.arithmetic import full_float32

        full_float32()
        if not gpu:
            torch.set_num_threads(1)
        self.workers, self._lock = workers, Lock()
        self._ahead: Ahead | None = None
        self.subject, self.task, self.device = subject.value, task.value, "cuda" if gpu else "cpu"

    @cached_property
    def networks(self) -> Mapping[str, Any]:
        return self.subject.networks(self.device)

    @cached_property
    def data(self) -> Any:
        """Found when a chunk of it is judged."""
        return self.subject.images()

    def ahead(self) -> Ahead | None:
        """Who reads for it; begun once, whoever asks first."""
        from robust_train.evaluate.ahead import Ahead

        with self._lock:
            if self._ahead is None and self.workers:
                self._ahead = Ahead(self.data, self.task, self.workers)
        return self._ahead

    def expect(self, job: Job) -> None:
        """Told, while a job is done, which one may come next."""
        if (ahead := self.ahead()) is not None:
            ahead.want(job)

    def judge(self, job: Job) -> Iterator[tuple[At, Tensors]]:
        """All that a chunk lacks, as it comes."""
        from robust_train.evaluate.work import work

        data: Any = None if job.on else self.data  # pieces elsewhere bring images of their own
        yield from work(self.networks, data, self.task, [job], self.device, self.ahead())
