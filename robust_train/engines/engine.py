"""Engine: who turns losses into new parameters. What plain PyTorch and DeepSpeed share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robust_train.arithmetic import full_float32
from robust_train.engines.average import Averaged
from robust_train.engines.division import micro_batch_size
from robust_train.engines.holding import Holding
from robust_train.engines.optim import build, restore, set_rate, state_of
from robust_train.engines.parts import Parts
from robust_train.engines.snapshot import Snapshot, put, take
from robust_train.engines.sums import digest, names, pack, size, squared_norm, summed, unlike, unpack
from robust_train.keyed import Key
from robust_train.leaving import GO_ON, asked
from robust_train.models.network import Network
from robust_train.models.weights import fit_weights
from robust_train.nouns import Batch, Loss, Objective, Place, State, at
from robust_train.read.errors import NumericsError, Terminated
from robust_train.run import Run


class RollBack(Exception):
    """An update that is to be left out, from the last checkpoint on; the job catches it."""

    def __init__(self, update: int, message: str) -> None:
        super().__init__(message)
        self.update = update


class Engine(ABC):
    """The network and all that changes while it learns: optimiser, parts, average, running statistics, state, position.

        for micro_batch in engine.micro_batches(batch):
            engine.backward(objective(engine.network, micro_batch, key, engine.state))
        metrics = engine.step()

    An update has the engine's own reduction of gradients, one flat all-reduce of everything else that is summed
    (metrics, counts, sums, BatchNorm's statistics, the gradient's norm, flags), one more of the gradients of parts
    where the objective has any, and one host read.
    dtype: of weights and images; float64 is for comparisons to the last digit.
    """

    def __init__(self, run: Run, place: Place, dtype: torch.dtype = torch.float32) -> None:
        full_float32()  # validation and the choice of the best checkpoint too
        self.run, self.place, self.dtype = run, place, dtype
        self.device = torch.device(place.device)
        self.micro_batch = micro_batch_size(run, place.world)  # images a device holds at once
        self.count = run.batch // place.world // self.micro_batch  # micro-batches an update
        self.module: Network = run.build(self.device).to(dtype)
        self.module.train()
        self.holding = Holding(self.module, place)
        self.parts = self._parts()
        self.parameters = {n.removeprefix("model."): p for n, p in self.module.named_parameters() if p.requires_grad}
        self.optimiser: torch.optim.Optimizer = build(run.optimiser, self.module, run.updates)
        if run.compile:
            self.module.model.compile()
        self.updates = 0  # done so far
        self.counts: dict[str, Tensor] = {}  # sums of what objectives counted, float64 on the host
        self.left_out: set[int] = set()  # updates that were found to be bad and are passed over
        self.averaged: Averaged | None = None
        self.begin_average()
        self.leaving = False  # whether any rank has been asked to leave
        self._losses: list[Loss] = []
        self._names: str | None = None  # what this process's last update consisted of
        self._broken: Tensor | None = None  # images of this rank's share that stand in for broken ones

    # -- what an engine must say ------------------------------------------------------------------

    @abstractmethod
    def _backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of one micro-batch's loss, a mean over the micro-batch, divided by the number of them."""

    @abstractmethod
    def _reduce_gradients(self) -> None:
        """Average gradients over the ranks, where backward has not done so."""

    @abstractmethod
    def _gradients(self) -> list[Tensor]:
        """The averaged gradients that this rank is to apply, in place; zeros for weights that no loss saw."""

    @abstractmethod
    def _update(self) -> None:
        """One optimiser step with the averaged gradients, which are cleared."""

    @abstractmethod
    def _discard(self) -> None:
        """Forget the averaged gradients; as if the update's backwards had not been."""

    copies: int  # ranks that hold each averaged gradient: all of them, or 1 where each holds its share

    def _parts(self) -> Parts:
        """The objective's parts for the network as it now is; what they draw depends on the run's seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(Key(self.run.seed).of("parts").seed % 2**63)
            with self.holding.whole() as network:
                parts = self.run.objective.parts(network, self.run.data)
                return Parts(parts, network, self.run.updates, self.device, self.dtype, lambda: self.holding)

    # -- an update --------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """What objectives and attacks call: the plain network, whose layers gather their weights under ZeRO 3."""
        return self.module

    @property
    def state(self) -> State:
        """What objectives are given of the updates so far."""
        return State(dict(self.counts), dict(self.parts.modules))

    def micro_batches(self, batch: Batch) -> Iterator[Batch]:
        """This rank's share of a global batch, cut into what the device holds: whole mixing and BatchNorm groups."""
        if self.updates in self.left_out:
            return
        assert len(batch) == self.micro_batch * self.count, "the data set hands out other shares than the engine cuts"
        self._losses = []
        self.holding.refresh()
        batch = batch.to(self.device, self.dtype)
        if getattr(self.run.data, "missing", 0):  # broken samples are allowed, so they are counted
            self._broken = batch.broken.sum() if batch.broken is not None else batch.position.new_zeros(())
        for start in range(0, len(batch), self.micro_batch):
            yield batch[start : start + self.micro_batch]

    def backward(self, loss: Loss) -> None:
        """Add one micro-batch's loss to the update: the parts' gradients first, for the network's frees the graph."""
        self._agree(loss)
        self.parts.backward(loss.of, 1 / self.count, retain=loss.total is not None)
        if loss.total is not None:
            self._backward(loss.total, last=len(self._losses) + 1 == self.count)
            self.parts.forget()
        total = None if loss.total is None else loss.total.detach()
        self._losses.append(Loss(total, *map(_detached, (loss.metrics, loss.counts, loss.of, loss.sums))))

    def _agree(self, loss: Loss) -> None:
        """ConfigError where a loss consists of other things than the update's first, or than other ranks' first one."""
        mine, use = names(loss), self.run.objective.use
        if self._losses:
            if mine != names(self._losses[0]):
                raise unlike(self.updates, use, mine, names(self._losses[0]), "in one micro-batch than in another")
            return
        if self._names is None:  # the process's first update: said in full, at the cost of a gather
            for rank, theirs in enumerate(self.gather(mine)):
                if theirs != mine:
                    raise unlike(self.updates, use, mine, theirs, f"on rank {rank} than on rank {self.place.rank}")
        self._names = mine

    def step(self) -> dict[str, float]:
        """Turn the micro-batches' losses into new parameters; the update's metrics, averaged over them and the ranks.

        Raises NumericsError (or RollBack) with nothing changed where a loss or a gradient is not finite.
        """
        update = self.updates
        metrics = {"left_out": 1.0} if update in self.left_out else self._step(update)
        self.updates = update + 1
        if "left_out" not in metrics:
            self.parts.follow(update, self.run.updates)
            if self.averaged is not None and (self._losses[0].total is not None or self._settles):
                self.averaged.follow(self.holding.followed(), self._decay(update))
        return metrics

    def _step(self, update: int) -> dict[str, float]:
        losses, world = self._losses, self.place.world
        trains = losses[0].total is not None  # whether the network has a gradient in this update
        if trains:
            self._reduce_gradients()
        self.parts.reduce(world)
        gradients = self._gradients() if trains else []
        metrics = summed([loss.metrics for loss in losses], 1 / (len(losses) * world))
        if self._broken is not None:
            metrics["data/broken"] = self._broken  # a sum, not a mean
        counts, sums = summed([loss.counts for loss in losses]), summed([loss.sums for loss in losses])
        recorded = {"": self.module.recorded()}
        squares = {
            "": squared_norm(gradients, self.device) / self.copies
        }  # of gradients; of parts every rank has the same
        squares |= {name: square / world for name, square in self.parts.squares().items()}
        slots = {
            "flags": self._slot(self._flag(losses)),
            "names": self._slot(digest(str(self._names))),
            "leave": self._slot(int(asked())),
        }

        head, tail = (slots, squares, metrics, counts), (sums, recorded)
        flat = self.all_reduce(pack(*head, *tail))
        length = sum(map(size, head))
        read = torch.tensor(flat[:length].tolist(), dtype=torch.float64)  # the update's one host read
        told, squared, means, counted = unpack(read, *head)
        odd = [rank for rank, theirs in enumerate(told["names"].tolist()) if theirs != digest(str(self._names))]
        if odd:
            raise unlike(update, self.run.objective.use, "", None, f"on rank {odd[0]} than on rank {self.place.rank}")
        self.leaving = bool(told["leave"].any())
        flagged = [rank for rank, flag in enumerate(told["flags"].tolist()) if flag]
        norms = {name: math.sqrt(value) for name, value in squared.items()}
        if flagged or not all(map(math.isfinite, norms.values())):
            return self._refuse(update, flagged, norms, trains)
        norm = norms.pop("")
        found = {name: float(value) for name, value in means.items()}
        if trains:
            clip, rate = self.run.optimiser.clip, self.rate(update)
            if clip and norm > clip:
                torch._foreach_mul_(gradients, clip / norm)
            set_rate(self.optimiser, rate)
            self._update()
            found |= {"gradient/norm": norm, "lr": rate}
        rates = self.parts.step(norms, update, self.run.updates)
        found |= {f"gradient/norm/{name}": value for name, value in norms.items()}
        found |= {f"lr/{name}": value for name, value in rates.items()}
        sums, recorded = unpack(flat[length:], *tail)
        self.module.move(recorded[""] if trains else None)  # a network at rest is left as it is
        for name, count in counted.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self._settle({name: value.to(losses[0].sums[name].dtype) for name, value in sums.items()}, update)
        return found

    def leave(self) -> None:
        """Raises Terminated where any rank has been asked to leave, on all ranks after the same update."""
        if self.leaving:
            raise Terminated(f"terminated after update {self.updates - 1:,}, which a checkpoint holds; {GO_ON}")

    def _slot(self, value: Tensor | int) -> Tensor:
        """[world]: a value of this rank in its own place, so that the sum over the ranks holds every rank's."""
        slots = torch.zeros(self.place.world, dtype=torch.float64, device=self.device)
        slots[self.place.rank] = value
        return slots

    def _flag(self, losses: list[Loss]) -> Tensor:
        """Whether a loss, count or sum of this rank is not finite, or a loss of the network above the limit."""
        totals = [loss.total.double() for loss in losses if loss.total is not None]
        others = [value.double().sum() for loss in losses for value in _others(loss)]
        bad = [~(total.isfinite() & (total <= self.run.on_nonfinite.limit)) for total in totals]
        bad += [~other.isfinite() for other in others]
        return torch.stack(bad).any() if bad else torch.zeros((), dtype=torch.bool)

    @torch.no_grad()
    def _settle(self, sums: dict[str, Tensor], update: int) -> None:
        """The objective's own moves, where it has any."""
        if not self._settles:
            return
        objective = at(self.run.objective, update, self.run.updates)
        with self.changing() as network:
            objective.settle(network, self.state, sums, update, self.run.updates)

    @property
    def _settles(self) -> bool:
        """Whether the objective has moves of its own."""
        return type(self.run.objective).settle is not Objective.settle

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        return at(self.run.optimiser.lr, update, self.run.updates)

    def _decay(self, update: int) -> float:
        """How much of the average an update keeps."""
        assert self.run.average is not None
        decay = at(self.run.average.decay, update, self.run.updates)
        return min(decay, (1 + update) / (10 + update)) if self.run.average.warmup else decay

    def _refuse(self, update: int, ranks: list[int], norms: dict[str, float], trains: bool) -> dict[str, float]:
        """Leave an update out as the run says. Everything is as before it."""
        if trains:
            self._discard()
        self.parts.discard()
        self.module.move(None)
        guard = self.run.on_nonfinite
        part, norm = next(((n, value) for n, value in norms.items() if not math.isfinite(value)), ("", norms[""]))
        what = f"the gradient{f' of part {part!r}' * bool(part)} is not finite (norm {norm})"
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

    @contextmanager
    def whole(self, averaged: bool = True) -> Iterator[Network]:
        """The network that is judged, all its weights on every rank: averaged ones where they are kept and asked for.

        Its forwards use no collective, so ranks may do unlike numbers of them; they enter and leave together.
        """
        with self.holding.whole(self.averaged if averaged else None) as network:
            yield network

    @contextmanager
    def changing(self) -> Iterator[Network]:
        """The network as it is trained, all weights on every rank, to be changed alike by all of them."""
        with self.holding.changing() as network:
            yield network
        self.weights_changed()

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

    # -- what a checkpoint holds ------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All that the next update depends on. Every rank takes one; each has its share of what is cut."""
        return take(self)

    def restore(self, there: Snapshot, source: str) -> None:
        """Put everything where it was. Any world size, any ZeRO stage; CheckpointError where it does not fit."""
        put(self, there, source)

    def begin_with(self, weights: dict[str, Tensor], source: str) -> list[str]:
        """Begin a run with weights from elsewhere; the names of those that stay as they are (another head)."""
        with self.changing() as network:
            head = fit_weights(network.model, weights, source, network.classes)
        self._began()
        return head

    def begin_calibrated(self, change: Callable[[nn.Module], None]) -> None:
        """Begin a run with what `change` makes of the model on the leading rank, in eval mode; all ranks get it."""
        with self.changing() as network:
            if self.place.leads:
                with network.judged(), network.noise(mode="off"):
                    change(network.model)
            if self.place.world > 1:  # not every rank for itself: devices of another kind round otherwise
                for value in network.model.state_dict().values():
                    distributed.broadcast(value, 0)
        self._began()

    def _began(self) -> None:
        """The network got the weights that the run begins with: parts and averages begin from them too."""
        self.parts = self._parts()
        self.begin_average()

    def begin_average(self) -> None:
        """Let every average of the network begin where the network stands."""
        if self.run.average is not None:
            self.averaged = self.holding.average()
        self.parts.begin()

    def optimiser_state(self, name: str) -> dict[str, Any]:
        """The optimiser's state of a parameter, in full (every rank calls it for every parameter, in one order)."""
        return state_of(self.optimiser, self.parameters[name])

    def set_optimiser_state(self, name: str, state: dict[str, Any]) -> None:
        """Give a parameter its optimiser state back (every rank calls it for every parameter, in one order)."""
        restore(self.optimiser, self.parameters[name], state)

    def weights_changed(self) -> None:
        """Told after the parameters were changed from outside, so that other copies of them follow."""
        return

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the engine holds."""
        return


def _detached(values: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


def _others(loss: Loss) -> list[Tensor]:
    """What of a loss must be finite beside its total."""
    return [*loss.of.values(), *loss.counts.values(), *loss.sums.values()]
