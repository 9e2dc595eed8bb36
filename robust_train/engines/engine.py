"""Engine: who turns losses into new parameters. What plain PyTorch and DeepSpeed share."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from robust_train import checkpoint
from robust_train.engines.average import Averaged, shares
from robust_train.engines.optim import set_rate
from robust_train.evaluate.accuracy import tally
from robust_train.keyed import Key
from robust_train.nouns import Attack, Batch, Loss, Place, at
from robust_train.read.errors import CheckpointError, ConfigError, NumericsError

if TYPE_CHECKING:
    from robust_train.records import Records
    from robust_train.run import Run


@dataclass(frozen=True)
class Guard:
    """What a loss that is not finite, or explodes, leads to. Nothing is ever changed by such an update."""

    policy: Literal["stop", "skip", "rollback"] = "stop"  # stop; leave the update out; or go back to the last checkpoint and leave it out then
    limit: float = 1e4  # a loss above this has exploded
    most: int = 10  # updates left out before the run stops all the same

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit={self.limit:g} must be positive: a loss above it has exploded")


@dataclass(frozen=True)
class Execution:
    """How updates are computed. Changes speed and memory, never the numbers."""

    zero: Literal[0, 1, 2] = 0  # DeepSpeed's ZeRO stage: what is sharded over the ranks (1: optimiser state, 2: gradients too)
    part: int | None = None  # images a device holds at once; a rank's share is accumulated in parts of at most this; null: all


class RollBack(Exception):
    """An update that is to be left out, from the last checkpoint on; the runner catches it."""

    def __init__(self, update: int, message: str) -> None:
        super().__init__(message)
        self.update = update


class Engine(ABC):
    """The network and all that changes while it learns: optimiser, averages, running statistics, state, position.

        for part in engine.parts(batch): engine.backward(objective(engine.network, part, key, engine.state))
        metrics = engine.step()

    An update has the engine's own reduction of gradients, one flat all-reduce of everything else that must be summed
    (metrics, counts, BatchNorm's statistics, flags), and one host read.
    """

    def __init__(self, run: Run, place: Place) -> None:
        self.run, self.place = run, place
        self.device = torch.device(place.device)
        self.dtype = torch.float32
        self.updates = 0  # done so far
        self.state: dict[str, Tensor] = {}
        self.left_out: set[int] = set()  # updates that were found to be bad and are passed over
        self.module = run.build(self.device)
        self.module.train()
        self.part = part_size(run, place.world)
        self._losses: list[Loss] = []

    # -- what an engine must say ------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> Any:
        """What objectives call: the plain network in attacks and without a graph, the engine's way of training else."""

    @abstractmethod
    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of one part's loss, a mean over the part, divided by the number of parts."""

    @abstractmethod
    def _reduce_gradients(self) -> None:
        """Average gradients over the ranks, where backward has not done so."""

    @abstractmethod
    def _squared_norm(self) -> Tensor:
        """This rank's share of the squared norm of the averaged gradient: the shares of all ranks add up to it."""

    @abstractmethod
    def _update(self, norm: float) -> None:
        """One optimiser step with the accumulated gradient, clipped; gradients are cleared."""

    @abstractmethod
    def _discard(self) -> None:
        """Forget the accumulated gradient; as if the update's backwards had not been."""

    @abstractmethod
    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over the ranks, in place."""

    # -- an update --------------------------------------------------------------------------------

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """This rank's share of a global batch, cut into what the device holds; whole mixing and BatchNorm groups."""
        if self.updates in self.left_out:
            return
        batch = batch.to(self.device, self.dtype)
        for start in range(0, len(batch), self.part):
            part = batch[start : start + self.part]
            self._last = start + self.part >= len(batch)
            self._count = len(batch) // self.part
            yield part

    def backward(self, loss: Loss) -> None:
        """Add one part's loss to the update."""
        self._losses.append(loss)
        self._backward(loss.total, self._last)

    def step(self) -> dict[str, float]:
        """Turn the parts' losses into new parameters; the update's metrics, averaged over parts and ranks.

        Raises NumericsError (or RollBack) with nothing changed where a loss or the gradient is not finite.
        """
        update, self.updates = self.updates, self.updates + 1
        if update in self.left_out:
            return {"left_out": 1.0}
        try:
            return self._step(update)
        except BaseException:
            self.updates = update
            raise

    def _step(self, update: int) -> dict[str, float]:
        self._reduce_gradients()
        parts, world = len(self._losses), self.place.world
        metrics = _summed([loss.metrics for loss in self._losses], 1 / (parts * world))
        counts = _summed([loss.counts for loss in self._losses], 1.0)
        totals = torch.stack([loss.total.detach().double() for loss in self._losses])
        bad = ~(totals.isfinite() & (totals <= self.run.on_nonfinite.limit)).all()
        ranks = torch.zeros(world, dtype=torch.float64, device=self.device)
        ranks[self.place.rank] = bad.double()
        sizes = {name: value.numel() for name, value in counts.items()}
        head = [*metrics.values(), *counts.values(), self._squared_norm().double(), ranks]
        tail = self.module.recorded()
        flat = self.all_reduce(torch.cat([value.detach().double().flatten() for value in head] + [tail]))
        read = flat[: len(flat) - len(tail)].tolist()  # the update's one host read
        self._losses = []

        values = dict(zip(metrics, read, strict=False))
        at_norm = len(metrics) + sum(sizes.values())
        norm, flagged = math.sqrt(max(0.0, read[at_norm])) if read[at_norm] == read[at_norm] else math.nan, read[at_norm + 1 :]
        if any(flagged) or not math.isfinite(norm):
            return self._refuse(update, [rank for rank, flag in enumerate(flagged) if flag], norm)

        set_rate(self.optimiser, self.rate(update))
        self._update(norm)
        self.module.move(flat[len(flat) - len(tail) :])
        offset = len(metrics)
        for name, size in sizes.items():
            added = flat[offset : offset + size].view(counts[name].shape)
            self.state[name] = self.state.get(name, torch.zeros_like(added)) + added
            offset += size
        if self.averaged is not None:
            self.averaged.update(self)
        return {**values, "gradient/norm": norm, "lr": self.rate(update)}

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        return at(self.run.optimiser.lr, update, self.run.updates)

    def _refuse(self, update: int, ranks: list[int], norm: float) -> dict[str, float]:
        self._discard()
        self.module.move(None)
        where = f"the loss is not finite or above {self.run.on_nonfinite.limit:g} on ranks {', '.join(map(str, ranks))}"
        what = where if ranks else f"the gradient is not finite (norm {norm})"
        message = f"update {update}: {what} (objective {self.run.objective.use}). Nothing was changed by it."
        guard = self.run.on_nonfinite
        if guard.policy == "stop" or len(self.left_out) >= guard.most:
            raise NumericsError(
                f"{message} The last whole checkpoint is kept. Lower the learning rate, clip the gradient "
                "(optimiser.clip), or pass such updates over with on_nonfinite.policy=skip or rollback."
            )
        if guard.policy == "rollback":
            raise RollBack(update, message)
        self.left_out.add(update)
        return {"left_out": 1.0}

    # -- validation -------------------------------------------------------------------------------

    averaged: Averaged | None = None
    optimiser: torch.optim.Optimizer
    improved = False  # whether the last validation was the best so far, and no checkpoint holds it yet
    best = -1.0  # the best validation accuracy so far: robust where an attack is named

    def validate(self) -> dict[str, float]:
        """Clean and robust accuracy on the validation images, and whether they are the best so far."""
        settings = self.run.validate
        found = self.evaluate(settings.attack, settings.images)
        score = found.get(f"accuracy/{settings.attack.label}" if settings.attack else "accuracy/clean", 0.0)
        if score > self.best:
            self.best, self.improved = score, True
        return found

    def evaluate(self, attack: Attack | None, images: int | None) -> dict[str, float]:
        """Accuracies of the averaged weights where they are kept, else of the weights, over all ranks."""
        batches = self.run.data.validation_batches(self.place, self.run.validate.chunk, images)
        with self.using_average():
            sums = tally(self.module, batches, attack, Key(self.run.seed).of("validate"), self.device, self.dtype)
        count, clean, robust = self.all_reduce(sums).tolist()
        if not count:
            raise ConfigError("there are no validation images: name data.validation, or set validate.every=0")
        found = {"accuracy/clean": clean / count, "validation/images": count}
        return found if attack is None else {**found, f"accuracy/{attack.label}": robust / count}

    @contextmanager
    def using_average(self) -> Iterator[None]:
        """The averaged weights in the network's place; nothing to do where none are kept."""
        if self.averaged is None:
            yield
            return
        with self.averaged.inside(self):
            yield

    # -- checkpoints ------------------------------------------------------------------------------

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """One value a rank to the list of all ranks', on every rank; also a barrier."""

    @abstractmethod
    def optimiser_state(self, name: str) -> dict[str, Any]:
        """The optimiser's state of a parameter, in full (every rank calls it for every parameter, in one order)."""

    @abstractmethod
    def set_optimiser_state(self, name: str, state: dict[str, Any]) -> None:
        """Give a parameter its optimiser state back (every rank calls it for every parameter, in one order)."""

    @abstractmethod
    def weights_changed(self) -> None:
        """Told after the parameters were loaded from outside, so that other copies of them follow."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters, by the model's own names."""
        return {n.removeprefix("model."): p for n, p in self.module.named_parameters() if p.requires_grad}

    def save(self, records: Records) -> None:
        """Write a checkpoint of everything the next update depends on, and close the metrics so far with it."""
        rank, world = self.place.rank, self.place.world
        parameters = self.parameters()
        owner = shares(dict(parameters), world)
        kept: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name in parameters:
            state = self.optimiser_state(name)
            if owner[name] == rank:
                tensors, numbers = checkpoint.scalars(state)
                kept |= {f"{name}/{key}": value for key, value in tensors.items()}
                plain |= {f"{name}/{key}": value for key, value in numbers.items()}
        plains: dict[str, Any] = {}
        for theirs in self.gather(plain):
            plains |= theirs
        files: dict[str, dict[str, Tensor]] = {f"optimiser-{rank:05d}.safetensors": kept}
        if self.averaged is not None:
            files[f"average-{rank:05d}.safetensors"] = self.averaged.kept
        if self.place.leads:
            files["weights.safetensors"] = self.module.model.state_dict()
            files["state.safetensors"] = dict(self.state)
        position = {
            "updates": self.updates,
            "best": max(self.best, -1.0),
            "left_out": sorted(self.left_out),
            "optimiser": plains,
            "records": records.close_segment(self.updates),
        }
        texts = {
            "run.yaml": self.run.dump(),
            "position.json": json.dumps(position, indent=1),
            "data.json": json.dumps(self.run.data.checksums(), indent=1),
        }
        folder = self.run.path / "checkpoints" / f"{self.updates:08d}"
        checkpoint.write(folder, files, texts, self.place, self.gather)
        if self.place.leads:
            if self.improved:
                marker = {"checkpoint": folder.name, "accuracy": self.best}
                checkpoint.write_atomically(folder.parent / "best.json", json.dumps(marker))
            checkpoint.prune(self.run.path, self.run.checkpoint.keep)
        self.improved = False

    def load(self, folder: Any) -> dict[str, Any]:
        """Go back to a checkpoint; what the records are to know of it. CheckpointError where it is not this network's."""
        checkpoint.verify(folder)
        position = json.loads((folder / "position.json").read_text(encoding="utf-8"))
        fit_weights(self.module.model, checkpoint.read(folder, "weights"), str(folder), {})
        self.weights_changed()
        saved = checkpoint.read(folder, "optimiser")
        states: dict[str, dict[str, Any]] = {name: {} for name in self.parameters()}
        for path, value in [*saved.items(), *position["optimiser"].items()]:
            name, _, key = path.rpartition("/")
            states[name][key] = value
        for name, state in states.items():
            self.set_optimiser_state(name, state)
        if self.averaged is not None:
            average = checkpoint.read(folder, "average")
            if not average:
                raise CheckpointError(f"{folder} holds no average, and the run keeps one. Say average=null, or begin anew.")
            for name, value in self.averaged.kept.items():
                value.copy_(average[name])
        self.state = {name: value.to(self.device) for name, value in checkpoint.read(folder, "state").items()}
        self.updates, self.best = position["updates"], position["best"]
        self.left_out |= set(position["left_out"])
        self.improved = False
        return position["records"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the engine holds."""


def fit_weights(model: torch.nn.Module, weights: dict[str, Tensor], source: str, new: dict[str, Tensor]) -> None:
    """Load weights by name; CheckpointError naming the first tensors that are missing, unknown or of another shape."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights and name not in new]
    unknown = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape and name not in new
    ]
    wrong = [f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})" for what, items in
             (("missing", missing), ("unknown", unknown), ("of another shape", shapes)) if items]
    if wrong:
        raise CheckpointError(f"{source} holds another model than the run's: {'; '.join(wrong)}. Name the run's own checkpoint, or another folder.")
    model.load_state_dict({**own, **{n: v for n, v in weights.items() if n not in new}})


def part_size(run: Run, world: int) -> int:
    """Images a device holds at once: the largest part of a rank's share that is whole groups and at most `engine.part`."""
    if run.batch % world:
        fits = [n for n in range(1, run.batch + 1) if run.batch % n == 0][:12]
        raise ConfigError(f"batch={run.batch} does not divide over {world} ranks. Use {', '.join(map(str, fits))} ... ranks, or another batch.")
    share, unit = run.batch // world, run.unit()
    if share % unit:
        fits = [n for n in range(1, run.batch + 1) if run.batch % n == 0 and (run.batch // n) % unit == 0]
        raise ConfigError(
            f"batch={run.batch} over {world} ranks is {share} images a rank, which is not whole groups of {unit} "
            f"(BatchNorm and mixing work on consecutive images, network.group and mix.group). Use {', '.join(map(str, fits)) or 'no'} "
            f"ranks, another batch, or smaller groups (changes the numbers)."
        )
    most = run.engine.part or share
    sizes = [size for size in range(unit, share + 1, unit) if share % size == 0 and size <= most]
    if not sizes:
        raise ConfigError(f"engine.part={most} is below one group of {unit} images: groups are not cut. Use engine.part={unit} or more.")
    return sizes[-1]


def _summed(dicts: Iterable[dict[str, Tensor]], scale: float) -> dict[str, Tensor]:
    """Sums by name over the parts, in float64, times `scale`; names in sorted order, the same on every rank."""
    total: dict[str, Tensor] = {}
    for values in dicts:
        for name, value in values.items():
            value = value.detach().double() * scale
            total[name] = total[name] + value if name in total else value
    return dict(sorted(total.items()))
