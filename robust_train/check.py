"""What can be found wrong with a run before its first update: folder, data, division, disk, memory."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch

from robust_train import checkpoint
from robust_train.engines.division import micro_batch_size
from robust_train.engines.engine import Engine
from robust_train.engines.pieces import refuse_pieces
from robust_train.evaluate.accuracy import refuse_unboxed
from robust_train.forecast import made_up, rehearse
from robust_train.keyed import Key
from robust_train.nouns import Attack, Place, Schedule, at, within
from robust_train.read.errors import ConfigError
from robust_train.read.ranges import refusals
from robust_train.run import Run

GIB, MIB = 2**30, 2**20
CURED = (errno.ENOSPC, errno.EDQUOT)  # what every command line says of a full disk is remedy enough


def check(run: Run, world: int) -> str:
    """What must hold before an engine is built for `world` ranks. Raises ConfigError or DataError if it does not."""
    in_order(run)
    in_range(run)
    refuse_pieces(run)
    size = micro_batch_size(run, world)
    for _, attack in within(run, Attack):
        refuse_unboxed(run.data.scale, attack.use)
    run.data.check()
    if not getattr(run.data, "validation_size", lambda: 1)():  # else it would be refused after its last update
        raise ConfigError("there are no validation images, and a run ends with an evaluation: name data.validation")
    run.batches(Place(world=world), 0)  # refuses what does not divide; no image is read before it is asked for
    count = run.batch // world // size
    each = f" on each of {world} devices" if world > 1 else ""
    return f"batch: {run.batch:,} images, in {count} micro-batch{'es' * (count > 1)} of {size:,}{each}"


def in_order(run: Run) -> None:
    """Refuse schedules whose points come out of order in a run of so many updates. Raises ConfigError with all."""
    lines = []
    for place, schedule in within(run, Schedule):
        turns = [0.0, *schedule.turns(run.updates)]
        if turns != sorted(turns):
            said = ", ".join(f"{turn:g}" for turn in turns[1:])
            lines.append(f"  run.{place}: {schedule.use} turns at updates {said}")
    if lines:
        listed = "\n".join(lines)
        raise ConfigError(
            f"schedules out of order in a run of {run.updates:,} updates:\n{listed}\nWrite shares of the run (10%), "
            "which keep their order however long it is, or updates that rise and end within it."
        )


def in_range(run: Run) -> None:
    """Refuse schedules that lead to a number its field does not allow. ConfigError names the update."""
    owners = {"objective": run.objective, "optimiser": run.optimiser, "average": run.average}
    turns = {turn for _, schedule in within(run, Schedule) for turn in schedule.turns(run.updates)}
    grid = {run.updates * share // 100 for share in range(100)} | {round(turn) for turn in turns} | {run.updates - 1}
    for update in sorted(update for update in grid if 0 <= update < run.updates):
        for name, owner in owners.items():
            try:
                now = at(owner, update, run.updates)
                wrong = next(iter(refusals(now)), None) if is_dataclass(now) else None
                if wrong is not None:
                    raise ValueError(f"{wrong[0]}: {wrong[1]}")
            except ValueError as error:
                raise ConfigError(f"run.{name}, at update {update:,} of its schedules: {error}") from None


def check_room(run: Run, engine: Engine) -> list[str]:
    """Whether disk and device hold what `engine` will need, in words. Raises ConfigError if not.

    No collective but, under ZeRO 3, of one whole copy of the weights: all ranks call it.
    """
    weights, _ = engine.holding.numbers()
    lines = [f"network: {weights:,} weights"]
    trains(run, engine)
    if engine.place.leads:
        lines.append(room(run, engine))
    return [*lines, memory(run, engine)]


@torch.no_grad()
def trains(run: Run, engine: Engine) -> None:
    """Refuse a network that takes images at rest and not in training, or answers otherwise there. Costs a forward."""
    network, size = engine.module, min(engine.micro_batch, max(2, run.unit()))
    batch = made_up(run.data, size, engine.device, engine.dtype)
    model = getattr(run.network.model, "name", run.network.model.use)
    try:
        with network.drops(Key(run.seed).of("rehearsal").rows(batch.position)):
            logits = network(batch.images)
    except torch.OutOfMemoryError:
        return  # the rehearsal says what to do
    except (ValueError, TypeError, AttributeError, IndexError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"run.network: {model} cannot be trained on samples {tuple(run.data.shape)}: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}. Set the rates of its dropout to 0 if it is theirs, or take "
            "another model."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (size, run.data.classes):
        said = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(
            f"run.network: {model} gives {said} in training, not logits [{size}, {run.data.classes}]: it has further "
            "heads there. Switch them off (network.model.options), or take another model."
        )


def writable(folder: Path, option: str = "folder=runs/NAME") -> None:
    """Whether files can be made in a folder, or could be once it is made. Leaves nothing behind.

    option: how another folder is named. Raises ConfigError, or OSError where the disk is full.
    """
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in CURED:
            raise
        raise ConfigError(
            f"{folder} cannot be written ({there}: {os.strerror(error.errno or 0).lower()}). Name a folder that you "
            f"may write to ({option}), or change the rights of this one."
        ) from None


def room(run: Run, engine: Engine) -> str:
    """Whether the disk holds the checkpoints that are there at once: those kept, the best, and one being written."""
    each, count = checkpoint_bytes(run, engine), run.checkpoint.keep + 2
    held = sum(path.stat().st_size for folder in checkpoint.saved(run.path) for path in folder.iterdir())
    place = next(path for path in (run.path.absolute(), *run.path.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free + held < count * each:
        raise ConfigError(
            f"folder={run.folder}: {_size(free)} are free, and {count} checkpoints of {_size(each)} need "
            f"{_size(count * each)}. Free some room, name a folder on another disk, or keep fewer (checkpoint.keep=1)."
        )
    return f"disk: {count} checkpoints of {_size(each)} at most, {_size(free)} free"


def checkpoint_bytes(run: Run, engine: Engine) -> int:
    """Bytes of one checkpoint: the model's tensors, the optimiser's moments of what is trained, average, parts."""
    weights, trained = (count * engine.dtype.itemsize for count in engine.holding.numbers())
    model = weights + sum(value.nbytes for value in engine.module.model.buffers())
    parts = sum(tensor.nbytes for tensor in engine.parts.held()[0].values())
    parts += sum(2 * parameter.nbytes for own in engine.parts.trained.values() for parameter in own.values())
    return model + moments(run) * trained + (model if run.average is not None else 0) + parts


def moments(run: Run) -> int:
    """Tensors of a parameter's size that the optimiser keeps: one for SGD with momentum and Lion, else at most two."""
    return 1 if run.optimiser.name in ("sgd", "nesterov", "momentum", "lion") else 2


def memory(run: Run, engine: Engine) -> str:
    """Whether the device holds gradients, moments and autograd's share of a micro-batch, measured by a rehearsal."""
    world, execution = engine.place.world, run.engine
    weights, trained = (count * engine.dtype.itemsize for count in engine.holding.numbers())
    kept = 0 if "optimiser" in execution.offload and engine.device.type != "cpu" else moments(run) * trained
    steady = trained // (world if execution.zero > 1 else 1) + kept // (world if execution.zero else 1)
    steady += weights * execution.copy
    each = activation_bytes(run, engine)
    wanted, have = steady + engine.micro_batch * each, available(engine.place)
    said = f"about {_size(wanted)} for micro-batches of {engine.micro_batch:,} images ({_size(each)} an image)"
    if wanted > have:
        most = int((have - steady) / each) // run.unit() * run.unit()
        remedy = f"Set engine.micro_batch={most} or less" if most > 0 else "Use a device with more memory"
        if most <= 0 and world > 1 and not run.engine.zero:
            remedy += ", or cut the optimiser's state over the devices (engine.zero=2)"
        raise ConfigError(
            f"memory of {engine.device}: {said} are needed, and {_size(have)} are free. {remedy}; "
            "network.checkpointing=true needs less, at one more forward an update."
        )
    return f"memory of {engine.device}: {said}, {_size(have)} free"


def activation_bytes(run: Run, engine: Engine) -> int:
    """Bytes an image that an update needs at its height: attack, forwards and all. Costs a rehearsal.

    On a GPU the measured peak of a whole micro-batch, buffers of kernels and the gradients of the weights included;
    elsewhere what graphs hold of the smallest one, counted tensor by tensor.
    """
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
        before = torch.cuda.memory_allocated(engine.device)
        rehearse(run, engine, engine.micro_batch)
        return math.ceil((torch.cuda.max_memory_allocated(engine.device) - before) / engine.micro_batch)
    size = min(engine.micro_batch, max(2, run.unit()))  # two: BatchNorm needs more than one value a channel
    with engine.whole(averaged=False) as network:
        held = Held({parameter.untyped_storage().data_ptr() for parameter in network.parameters()})
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
            rehearse(run, engine, size, network)
    return held.most // size


class Held:
    """Counts the bytes that graphs hold at once; storages in `known` (the weights) are there anyway."""

    def __init__(self, known: set[int]) -> None:
        self.known = known
        self.uses: dict[int, int] = {}
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> Kept:
        """What a graph is given to keep in a tensor's place."""
        return Kept(self, tensor)

    def count(self, storage: Any, change: int) -> None:
        """One use of a storage more, or less."""
        place = storage.data_ptr()
        if place in self.known:
            return
        before = self.uses.get(place, 0)
        self.uses[place] = before + change
        if min(before, before + change) == 0:
            self.now += change * storage.nbytes()
            self.most = max(self.most, self.now)


class Kept:
    """A saved tensor; forgotten by the graph, it is counted no longer."""

    def __init__(self, held: Held, tensor: torch.Tensor) -> None:
        self.held, self.tensor = held, tensor
        held.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.held.count(self.tensor.untyped_storage(), -1)


def available(place: Place) -> int:
    """Bytes of memory that this process may still use on its device; on CPUs its share of the machine's."""
    if place.device.startswith("cuda"):
        idle = torch.cuda.memory_reserved(place.device) - torch.cuda.memory_allocated(place.device)
        return torch.cuda.mem_get_info(place.device)[0] + idle  # free, and PyTorch's own but in no tensor
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", place.world))  # on this machine, as torchrun and Ray say it
    return _free_memory() // max(1, neighbours)


def _free_memory() -> int:
    """Bytes: Linux's own estimate of what can be used without swapping; elsewhere all that the machine has."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _size(count: float) -> str:
    """Bytes in GiB, or in MiB where they are few."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / MIB:,.1f} MiB"
