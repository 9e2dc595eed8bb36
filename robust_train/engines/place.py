"""Where a process stands in its job, and how the job's processes find each other."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import distributed

from robust_train.nouns import Place
from robust_train.read.errors import ConfigError


def place_of_environment(gpu: bool = False) -> Place:
    """This process's place as torchrun and Ray Train say it: RANK, WORLD_SIZE, LOCAL_RANK; alone where they are absent.

    gpu: the GPU of the process's number on its machine; or the one GPU that a launcher lets it see, where it hands each
    process its own (CUDA_VISIBLE_DEVICES names a single one). ConfigError where there is none.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not gpu:
        return Place(rank, world, "cpu")
    local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= there:
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if there == len(shown) == 1 and shown[0]:
            return Place(rank, world, "cuda:0")  # whether it is another's too is seen in `join`
        raise ConfigError(
            f"rank {rank} is process {local} of its machine and wants GPU {local}, and PyTorch finds {there} there. "
            "Start as many processes a machine as it has GPUs, or say cluster.gpu=false."
        )
    return Place(rank, world, f"cuda:{local}")


def join(place: Place) -> None:
    """Enter the job's process group, gloo on CPUs and nccl on GPUs, unless this process is in it already (Ray's are).

    With more than one rank MASTER_ADDR and MASTER_PORT say where the ranks meet, as torchrun and Ray Train set them.
    """
    on_gpu = place.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(place.device)
    if not distributed.is_initialized():
        store = distributed.HashStore() if place.world == 1 else None
        backend = "nccl" if on_gpu else "gloo"
        # nccl is bound to the GPU at once: it would else guess by rank, which is wrong on the second machine
        bound = torch.device(place.device) if on_gpu else None
        distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, device_id=bound)
    there = distributed.get_rank(), distributed.get_world_size()
    if there != (place.rank, place.world):
        raise ConfigError(
            f"this process is rank {there[0]} of {there[1]} in its process group, and rank {place.rank} of "
            f"{place.world} by RANK and WORLD_SIZE. Start every rank with one launcher: torchrun, or launch.train."
        )
    if on_gpu and place.world > 1:
        everybody: list[tuple[str, str]] = [("", "")] * place.world
        distributed.all_gather_object(everybody, (os.uname().nodename, gpu_of(place)))
        refuse_shared(everybody)


def gpu_of(place: Place) -> str:
    """What tells the GPU of a place from all others of its machine, whatever number it has in this process."""
    return str(torch.cuda.get_device_properties(place.device).uuid)


def refuse_shared(everybody: Sequence[tuple[str, str]]) -> None:
    """ConfigError where two ranks share a GPU, at which nccl would fail or hang. everybody: (machine, GPU) by rank."""
    first: dict[tuple[str, str], int] = {}
    for rank, there in enumerate(everybody):
        if first.setdefault(there, rank) != rank:
            raise ConfigError(
                f"ranks {first[there]} and {rank} are both on GPU {there[1]} of {there[0]}. Give each process of a "
                "machine its own LOCAL_RANK, as torchrun and launch.train do, or its own CUDA_VISIBLE_DEVICES."
            )
