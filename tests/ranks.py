"""A function on several ranks: processes of their own, that meet over gloo in a folder of their own.

They are forked from a server that has loaded what is slow to import and run nothing: several seconds a rank less.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from robust_train.nouns import Place


def on_ranks(world: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(place, *arguments)` gives on each rank. Raises with the first rank's traceback where one fails."""
    context = server()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_work, args=(dict(os.environ), rank, world, folder, work, arguments))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        errors = [path.read_text() for path in sorted(Path(folder).glob("error-*"))]
        if errors or any(rank.exitcode for rank in ranks):
            raise RuntimeError("\n".join(errors) or f"exit codes {[rank.exitcode for rank in ranks]}")
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(world)]


def server() -> ForkServerContext:
    """Where processes come from that have torch, DeepSpeed and the package loaded."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["robust_train.job", "robust_train.subject", "deepspeed", "tests.toys"])
    return context


def _work(environment: dict[str, str], rank: int, world: int, folder: str, work: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)  # whatever a run writes goes away with it
    os.environ.clear()  # the server's own is of the time at which it started
    os.environ |= environment | {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    try:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        torch.save(work(Place(rank, world, "cpu"), *arguments), Path(folder) / f"result-{rank}")
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)  # at once: the others wait for this rank in a collective, and fail when it is gone
