"""Engine: who turns losses into new parameters. What plain PyTorch and DeepSpeed share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from robust_train.engines import saved
from robust_train.engines.average import Averaged
from robust_train.engines.division import micro_batch_size
from robust_train.engines.optim import build, set_rate
from robust_train.evaluate.accuracy import tally
from robust_train.keyed import Key
from robust_train.models.weights import fit_weights
from robust_train.nouns import Attack, Batch, Loss, Place, at
from robust_train.read.errors import ConfigError, NumericsError
from robust_train.run import Run

if TYPE_CHECKING:
    from robust_train.records import Records


class RollBack(Exception):
    """An update that is to be left out, from the last checkpoint on; the job catches it."""

    def __init__(self, update: int, message: str) -> None:
        super().__init__(message)
        self.update = update


class Engine(ABC):
    """The network and all that changes while it learns: optimiser, average, running statistics, state, position.

        for micro_batch in engine.micro_batches(batch):
            engine.backward(objective(engine.network, micro_batch, key, engine.state))
        metrics = engine.step()

    An update has the engine's own reduction of gradients, one flat all-reduce of everything else that is summed
    (metrics, counts, BatchNorm's statistics, the gradient's norm, flags), and one host read.
    dtype: of weights and images; float64 is for comparisons to the last digit.
    """

    def __init__(self, run: Run, place: Place, dtype: torch.dtype = torch.float32) -> None:
        self.run, self.place, self.dtype = run, place, dtype
        self.device = torch.device(place.device)
        self.micro_batch = micro_batch_size(run, place.world)  # images a device holds at once
        self.count = run.batch // place.world // self.micro_batch  # micro-batches an update
        self.module = run.build(self.device).to(dtype)
        self.module.train()
        self.parameters = {n.removeprefix("model."): p for n, p in self.module.named_parameters() if p.requires_grad}
        self.optimiser: torch.optim.Optimizer = build(run.optimiser, self.module, run.updates)
        if run.compile:
            self.module.model.compile()
        self.updates = 0  # done so far
        self.state: dict[str, Tensor] = {}  # sums of what objectives counted, float64 on the host
        self.left_out: set[int] = set()  # updates that were found to be bad and are passed over
        self.best = -1.0  # the best validation accuracy so far: robust where an attack is named
        self.best_checkpoint: str | None = None  # the name of the one that holds it
        self.improved = False  # whether the last validation was the best so far, and no checkpoint holds it yet
        self.probed: float | None = None  # accuracy at the last probe
        self.averaged: Averaged | None = None if run.average is None else Averaged(run.average, self)
        self._losses: list[Loss] = []
        self._broken: Tensor | None = None  # images of this rank's share that stand in for broken ones

    # -- what an engine must say ------------------------------------------------------------------

    @property
    @abstractmethod
    def network(self) -> Any:
        """What objectives call: the plain network in attacks and without a graph, the engine's way of training else."""

    @abstractmethod
    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of one micro-batch's loss, a mean over the micro-batch, divided by the number of them."""

    @abstractmethod
    def _reduce_gradients(self) -> None:
        """Average gradients over the ranks, where backward has not done so."""

    @abstractmethod
    def _gradients(self) -> list[Tensor]:
        """The averaged gradients that this rank is to apply, in place."""

    @abstractmethod
    def _update(self) -> None:
        """One optimiser step with the averaged gradients, which are cleared."""

    @abstractmethod
    def _discard(self) -> None:
        """Forget the averaged gradients; as if the update's backwards had not been."""

    copies: int  # ranks that hold each averaged gradient: all of them, or 1 where each holds its share

    # -- an update --------------------------------------------------------------------------------

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """This rank's share of a global batch, cut into what the device holds: whole mixing and BatchNorm groups."""
        if self.updates in self.left_out:
            return
        assert len(batch) == self.micro_batch * self.count, "the data set hands out other shares than the engine cuts"
        self._losses = []
        batch = batch.to(self.device, self.dtype)
        if getattr(self.run.data, "missing", 0):  # broken samples are allowed, so they are counted
            self._broken = batch.broken.sum() if batch.broken is not None else batch.position.new_zeros(())
        for start in range(0, len(batch), self.micro_batch):
            yield batch[start : start + self.micro_batch]

    def backward(self, loss: Loss) -> None:
        """Add one micro-batch's loss to the update."""
        self._backward(loss.total, last=len(self._losses) + 1 == self.count)
        detached = [{name: value.detach() for name, value in values.items()} for values in (loss.metrics, loss.counts)]
        self._losses.append(Loss(loss.total.detach(), *detached))

    def step(self) -> dict[str, float]:
        """Turn the micro-batches' losses into new parameters; the update's metrics, averaged over them and the ranks.

        Raises NumericsError (or RollBack) with nothing changed where a loss or the gradient is not finite.
        """
        update = self.updates
        metrics = {"left_out": 1.0} if update in self.left_out else self._step(update)
        self.updates = update + 1
        if self.averaged is not None and "left_out" not in metrics:
            self.averaged.update(self)
        return metrics

    def _step(self, update: int) -> dict[str, float]:
        self._reduce_gradients()
        losses, world = self._losses, self.place.world
        metrics = _summed([loss.metrics for loss in losses], 1 / (len(losses) * world))
        if self._broken is not None:
            metrics["data/broken"] = self._broken  # a sum, not a mean
        counts = _summed([loss.counts for loss in losses], 1.0)
        gradients = self._gradients()
        share = torch.stack(torch._foreach_norm(gradients)).double().square().sum() / self.copies
        totals = torch.stack([loss.total for loss in losses]).double()
        flags = torch.zeros(world, dtype=torch.float64, device=self.device)
        flags[self.place.rank] = (~(totals.isfinite() & (totals <= self.run.on_nonfinite.limit))).any()

        read_out = [*metrics.values(), *counts.values(), flags, share]
        flat = self.all_reduce(torch.cat([t.double().flatten() for t in [*read_out, self.module.recorded()]]))
        length = sum(tensor.numel() for tensor in read_out)
        *read, squared = flat[:length].tolist()  # the update's one host read
        values, flagged = dict(zip(metrics, read, strict=False)), read[-world:]

        norm = math.sqrt(squared)
        if any(flagged) or not math.isfinite(norm):
            return self._refuse(update, [rank for rank, flag in enumerate(flagged) if flag], norm)
        clip, rate = self.run.optimiser.clip, self.rate(update)
        if clip and norm > clip:
            torch._foreach_mul_(gradients, clip / norm)
        set_rate(self.optimiser, rate)
        self._update()
        self.module.move(flat[length:])
        counted = torch.tensor(read[len(metrics) : -world], dtype=torch.float64).split(
            [c.numel() for c in counts.values()]
        )
        for (name, count), piece in zip(counts.items(), counted, strict=True):
            self.state[name] = self.state.get(name, 0) + piece.view(count.shape)
        return {**values, "gradient/norm": norm, "lr": rate}

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        return at(self.run.optimiser.lr, update, self.run.updates)

    def _refuse(self, update: int, ranks: list[int], norm: float) -> dict[str, float]:
        """Leave an update out as the run says. Everything is as before it."""
        self._discard()
        self.module.move(None)
        guard = self.run.on_nonfinite
        what = f"the gradient is not finite (norm {norm})"
        if ranks:
            on = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            what = f"the loss is not finite, or above on_nonfinite.limit={guard.limit:g}, on {on}"
        message = f"update {update}: {what} (objective {self.run.objective.use}). Nothing was changed by it."
        if guard.policy == "stop" or len(self.left_out) >= guard.most:
            left = f"{len(self.left_out)} updates were left out already. " if self.left_out else ""
            raise NumericsError(
                f"{message} {left}The last whole checkpoint is kept. Lower the learning rate, clip the gradient "
                "(optimiser.clip), or pass such updates over with on_nonfinite.policy=skip or rollback."
            )
        if guard.policy == "rollback":
            raise RollBack(update, message)
        self.left_out.add(update)
        return {"left_out": 1.0}

    # -- judging ----------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Clean and robust accuracy on the validation images; `improved` where they are the best so far."""
        settings = self.run.validate
        found = self.evaluate(settings.attack, settings.images)
        score = found[f"accuracy/{settings.attack.label}" if settings.attack else "accuracy/clean"]
        if score > self.best:
            self.best, self.improved = score, True
        return found

    def evaluate(self, attack: Attack | None, images: int | None) -> dict[str, float]:
        """Accuracies of the averaged weights where they are kept, else of the weights, over all ranks."""
        batches = self.run.data.validation_batches(self.place, self.run.validate.chunk, images)
        with self.using_average():
            found = self._tally(batches, attack, Key(self.run.seed).of("validate"))
        if not found["validation/images"]:
            raise ConfigError("there are no validation images: name data.validation, or set validate.every=0")
        return found

    def probe(self, batch: Batch, records: Records) -> None:
        """Look for catastrophic overfitting, as Probe says it; recorded, and said aloud where it is found."""
        settings, update = self.run.validate.probe, self.updates - 1
        attack = settings.attack
        assert attack is not None, "a probe that is due has an attack"
        chosen = batch[batch.position < settings.images]
        key = Key(self.run.seed).at(update).of("probe")
        found = self._tally([chosen] if len(chosen) else [], attack, key)
        accuracy = found[f"accuracy/{attack.label}"]
        before, self.probed = self.probed, accuracy
        collapsed = before is not None and before - accuracy > settings.fall
        records.add(update, {f"probe/{attack.label}": accuracy, "probe/collapsed": float(collapsed)})
        if collapsed:
            records.say(
                f"update {update}: accuracy under {attack.label} on the batch's first images fell from "
                f"{before:.2f} to {accuracy:.2f} between two probes: catastrophic overfitting to the training attack? "
                "Give it more steps, more noise (n-fgsm) or a smaller eps; start= takes a checkpoint from before."
            )

    def _tally(self, batches: Any, attack: Attack | None, key: Key) -> dict[str, float]:
        """Accuracies over the batches of all ranks."""
        sums = tally(self.module, batches, attack, key, self.device, self.dtype)
        count, clean, robust = self.all_reduce(sums).tolist()
        found = {"accuracy/clean": clean / max(1.0, count), "validation/images": count}
        return found if attack is None else {**found, f"accuracy/{attack.label}": robust / max(1.0, count)}

    @contextmanager
    def using_average(self) -> Iterator[None]:
        """The averaged weights in the network's place; nothing to do where none are kept."""
        if self.averaged is None:
            yield
            return
        with self.averaged.inside(self):
            yield

    # -- between ranks ----------------------------------------------------------------------------

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of `values` over the ranks, in place."""
        if self.place.world > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One value a rank to the list of all ranks', on every rank; also a barrier."""
        if self.place.world == 1:
            return [value]
        values: list[Any] = [None] * self.place.world
        distributed.all_gather_object(values, value)
        return values

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, records: Records) -> None:
        """Write a checkpoint of everything the next update depends on, and close the metrics so far with it."""
        saved.save(self, records)

    def load(self, folder: Path) -> dict[str, Any]:
        """Go back to a checkpoint; what the records are to know of it. CheckpointError where it does not fit."""
        return saved.load(self, folder)

    def begin_with(self, weights: dict[str, Tensor], source: str) -> list[str]:
        """Begin a run with weights from elsewhere; the names of those that stay as they are (another head)."""
        head = fit_weights(self.module.model, weights, source, self.module.classes)
        self.weights_changed()
        if self.run.average is not None:
            self.averaged = Averaged(self.run.average, self)
        return head

    def optimiser_state(self, name: str) -> dict[str, Any]:
        """The optimiser's state of a parameter, in full (every rank calls it for every parameter, in one order)."""
        return dict(self.optimiser.state.get(self.parameters[name], {}))

    def set_optimiser_state(self, name: str, state: dict[str, Any]) -> None:
        """Give a parameter its optimiser state back (every rank calls it for every parameter, in one order)."""
        parameter = self.parameters[name]
        self.optimiser.state[parameter] = {
            key: value.to(parameter.device if value.dim() else "cpu", copy=True) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }

    def weights_changed(self) -> None:  # noqa: B027  most have no other copy
        """Told after the parameters were loaded from outside, so that other copies of them follow."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Give back what the engine holds."""


def _summed(dicts: list[dict[str, Tensor]], scale: float) -> dict[str, Tensor]:
    """Sums by name over the micro-batches, in float64, times `scale`; names in sorted order, the same on every rank."""
    return {name: torch.stack([values[name].double() for values in dicts]).sum(0) * scale for name in sorted(dicts[0])}
