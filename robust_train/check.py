"""What can be found wrong with a run before its first update: data, division, disk, memory."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch

from robust_train.engines.execution import part_size
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError

if TYPE_CHECKING:
    from robust_train.models.network import Network
    from robust_train.run import Run

GIB = 2**30


def check(run: Run, place: Place) -> None:
    """Raise for the first thing that would stop the run later on: each with its remedy."""
    run.data.check()
    part = part_size(run, place.world)
    network = run.build(torch.device("cpu"))
    room(run, network, place)
    memory(run, network, part, place)


def room(run: Run, network: Network, place: Place) -> None:
    """Whether the disk holds the checkpoints that will be there at once: the kept ones, the best, and the one being written."""
    if not place.leads:
        return
    bytes_each = checkpoint_bytes(run, network)
    wanted = (run.checkpoint.keep + 2) * bytes_each
    free = shutil.disk_usage(run.path).free
    if free < wanted:
        raise ConfigError(
            f"{run.path}: {free / GIB:.2f} GiB are free, and {run.checkpoint.keep + 2} checkpoints of {bytes_each / GIB:.2f} GiB "
            f"need {wanted / GIB:.2f}. Free some room, name a folder on another disk, or keep fewer (checkpoint.keep=1)."
        )


def checkpoint_bytes(run: Run, network: Network) -> int:
    """Bytes of one checkpoint: weights, two moments (one for SGD) and the average, in float32."""
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    moments = 1 if run.optimiser.name in ("sgd", "momentum") else 2
    return weights * (1 + moments + (run.average is not None))


def memory(run: Run, network: Network, part: int, place: Place) -> None:
    """Whether the device holds weights, gradients, moments and the activations of one part, as an estimate on one image."""
    each = activation_bytes(run, network)
    steady = 2 * checkpoint_bytes(run, network)
    wanted = steady + part * each
    have = available(place)
    if wanted > have:
        most = max(1, int((have - steady) / each)) if have > steady else 0
        remedy = f"Set engine.part={most} or less" if most else "Use more devices with engine.zero=2"
        raise ConfigError(
            f"a part of {part} images needs about {wanted / GIB:.1f} GiB on {place.device}, and {have / GIB:.1f} GiB are there "
            f"({each / 2**20:.0f} MiB an image). {remedy}, or network.checkpointing=true."
        )


def activation_bytes(run: Run, network: Network) -> int:
    """Bytes kept for the backward of one image: what autograd saves in one forward of it."""
    from robust_train.keyed import Key

    group = 2  # two images, halved: BatchNorm needs more than one where a layer's map is 1x1
    images = torch.full((group, run.data.channels, run.data.size, run.data.size), 0.5)
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = [parameter.untyped_storage().data_ptr() for parameter in network.parameters()]
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), network.drops(Key(0).rows(torch.arange(group))):
        network(images).sum()
    network.move(None)
    return sum(size for pointer, size in seen.items() if pointer not in held) // group


def available(place: Place) -> int:
    """Bytes of memory that this process may use on its device."""
    if place.device.startswith("cuda"):
        return torch.cuda.mem_get_info(place.device)[0]
    import psutil

    return psutil.virtual_memory().available // max(1, place.world)
