"""Where a process stands on nodes of several GPUs: environment variables and a fake of torch.cuda, no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from robust_train.engines import place as places
from robust_train.engines.place import join, place_of_environment, refuse_shared
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError


def said(monkeypatch: pytest.MonkeyPatch, gpus: int, **variables: str) -> Place:
    """The place of a process with these variables on a machine where PyTorch sees so many GPUs."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    return place_of_environment(gpu=True)


def test_two_nodes_of_four_gpus_give_each_rank_the_gpu_of_its_number_on_its_node(monkeypatch) -> None:
    found = [
        said(monkeypatch, 4, RANK=str(rank), WORLD_SIZE="8", LOCAL_RANK=str(rank % 4), CUDA_VISIBLE_DEVICES="0,1,2,3")
        for rank in range(8)
    ]
    assert found == [Place(rank, 8, f"cuda:{rank % 4}") for rank in range(8)]


def test_a_launcher_that_shows_each_process_one_gpu_is_understood(monkeypatch) -> None:
    shown = said(monkeypatch, 1, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", CUDA_VISIBLE_DEVICES="3")
    assert shown == Place(3, 4, "cuda:0")
    with pytest.raises(ConfigError, match="process 1 of its machine and wants GPU 1, and PyTorch finds 1"):
        said(monkeypatch, 1, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")  # one GPU, shown to all
    with pytest.raises(ConfigError, match="PyTorch finds 2"):
        said(monkeypatch, 2, RANK="2", WORLD_SIZE="3", LOCAL_RANK="2", CUDA_VISIBLE_DEVICES="0,1")
    assert said(monkeypatch, 1) == Place(0, 1, "cuda:0")


def test_two_ranks_on_one_gpu_are_refused_and_like_numbers_on_two_machines_are_not() -> None:
    refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1")])
    with pytest.raises(ConfigError, match="ranks 1 and 3 are both on GPU GPU-2 of a"):
        refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-2"), ("a", "GPU-2")])


def test_nccl_is_bound_to_the_gpu_of_the_process(monkeypatch) -> None:
    """Fakes of torch.cuda and of the process group: which calls are made, not what a GPU does with them."""
    asked: dict[str, Any] = {}

    def gathered(found: list[Any], mine: Any) -> None:
        found[:] = [mine, ("elsewhere", mine[1])]

    def begin(backend: str, **more: Any) -> None:
        asked.update(backend=backend, **more)

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-7"))
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(
        distributed, "init_process_group", lambda backend, **said: asked.update(backend=backend, **said)
    )
    monkeypatch.setattr(distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(distributed, "all_gather_object", gathered)
    monkeypatch.setattr(places, "refuse_shared", lambda everybody: asked.update(everybody=everybody[1:]))
    join(Place(5, 8, "cuda:1"))
    assert asked.pop("everybody")[0] == ("elsewhere", "GPU-7")
    wanted = {"device": "cuda:1", "backend": "nccl", "device_id": torch.device("cuda:1")}
    assert asked == wanted | {"store": None, "rank": 5, "world_size": 8}
