"""Deal an evaluation's chunks over the devices of a Ray cluster: the same verdicts, sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launch.cluster import joined, nodes
from robust_train.read.errors import ConfigError
from robust_train.read.uses import Carried

if TYPE_CHECKING:
    from robust_train.evaluate.robustness import Deal
    from robust_train.evaluate.work import Found, Piece, Plan

TIMES = 3  # a process that dies is started again so often; what it had given is not given twice


class Subject(Protocol):
    """What is judged, as a value that travels: a network and its images (robust_train.subject), a panel of many."""

    def at(self, folder: str) -> Subject:
        """The same, its relative paths taken from `folder`."""

    def network(self, device: str) -> Any:
        """What `work` is given to judge."""

    def images(self) -> Any:
        """What `work` is given to judge it on."""


def dealt(
    subject: Subject, devices: int, gpu: bool, address: str | None = None, work: Callable[..., Any] | None = None
) -> Deal:
    """Who does an evaluation's work on `devices` processes of a cluster, one a device; None: a local one.

    Chunk i goes to process i mod devices. work: what each process does with (network, images, plan, place, done); None:
    an evaluation's attacks. Raises ConfigError where the cluster has not so many devices.
    """

    def deal(plan: Plan, done: Mapping[Piece, Found]) -> Iterator[tuple[Piece, Found]]:
        with joined(address):
            import ray

            kind = "GPU" if gpu else "CPU"
            there = int(sum(node.get(kind, 0) for node in nodes()))
            if there < devices:
                raise ConfigError(
                    f"the cluster has {there} {kind}s, --devices asks for {devices}: say --devices {there}"
                )
            options: dict[str, Any] = {"num_cpus": 1, "num_gpus": int(gpu), "max_retries": TIMES}
            each = ray.remote(num_returns="streaming", **options)(share)
            what, how = Carried(subject.at(str(Path.cwd()))), Carried(plan)
            running: list[Any] = [
                each.remote(what, how, rank, devices, gpu, _of(done, rank, devices), work) for rank in range(devices)
            ]
            while running:
                ready, _ = ray.wait(running, num_returns=1, fetch_local=False)
                stream: Any = ready[0]
                try:
                    reference = next(stream)
                except StopIteration:
                    running.remove(stream)
                    continue
                yield ray.get(reference)

    return deal


def share(
    subject: Carried,
    plan: Carried,
    rank: int,
    world: int,
    gpu: bool,
    done: Mapping[Piece, Any],
    work: Callable[..., Any] | None = None,
) -> Iterable[tuple[Piece, Any]]:
    """One process's part of the work, on its device."""
    import torch

    from robust_train.arithmetic import full_float32
    from robust_train.evaluate.work import work as attacked
    from robust_train.nouns import Place

    full_float32()
    if not gpu:
        torch.set_num_threads(1)
    device = "cuda" if gpu else "cpu"
    network, images = subject.value.network(device), subject.value.images()
    yield from (work or attacked)(network, images, plan.value, Place(rank, world, device), done)


def _of(done: Mapping[Piece, Any], rank: int, world: int) -> dict[Piece, Any]:
    """Those pieces that are of this process's chunks."""
    return {at: found for at, found in done.items() if at[0] % world == rank}
