"""The images of a chunk that still stand, packed, so that an attack spends nothing on those that have fallen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from robust_train.attacks.attacked import exactly
from robust_train.attacks.chance import judged, passes
from robust_train.attacks.given import finite, wide
from robust_train.keyed import Key
from robust_train.losses import labels_of, margin

State = TypeVar("State")


class Standing:
    """Which images of a chunk an attack has still to fool, and the worst point found for each.

        standing = Standing(network, images, targets, key)       # those wrong when clean have fallen already
        for step in range(steps):
            ...                                                    # on standing.images, .labels, .key: the packed rows
            standing.note(fooled, points)                          # no read of the device
            if standing.due(step): state = standing.pack(state)    # the only ones: at most two a call
            if not standing.count: break

    A point counts when a fresh float32 forward says that it fools; until then its image is attacked on, so that reduced
    precision sets no image aside. A network with noise of its own answers right in a share of its passes, and one draw
    decides nothing: an image has fallen where none of 100 passes is right, the worst point is the one that is right
    least often in the same 100 draws (of an ascent's best and of the last that fooled its mean answer), and nothing is
    set aside before a run ends. On a GPU packed sizes are rungs (at most an eighth is
    padding, copies of the first row), so that a compiled network sees few shapes; on a CPU, where a read costs nothing,
    there is no padding and every fall is followed by a packing. Rows are never mixed: what is done to an image is a
    function of the image, its key and, through rounding alone, of the packed size.
    """

    def __init__(
        self, network: Any, images: Tensor, targets: Tensor, key: Key, every: int = 10, waits: bool | None = None
    ) -> None:
        """images [N, ...] in [0, 1]; targets [N] or [N, C]. Costs one forward; 100 where the network draws noise, and
        then a run's end costs 200.

        every: steps between two packings; waits: whether a read of the device is dear, None: on a GPU.
        """
        self.network, self.every = network, every
        self.waits = images.is_cuda if waits is None else waits
        self.chunk, self.chunk_targets = images, targets
        self.chunk_labels = labels_of(targets)
        self.chunk_key = key.naming(images)
        self.passes = passes(network)
        self.share, self.logits = self._verdict(
            images
        )  # [N] of the passes that are right at `found`; [N, C] when clean
        self.found = images.clone()  # [N, ...] the point with the smallest margin so far
        self.margin = margin(self.logits, self.chunk_labels)  # [N] there
        self.fallen = self.share == 0  # [N]
        self.steps = torch.zeros_like(self.chunk_labels)  # [N] steps spent before it fell, or in all
        self.row, self.count = self.chunk_labels, 0  # [b] of the chunk, padding included; images without it
        self.real = self.claimed = self.fallen  # [b] whether a row is no padding; whether a point of its counts so far
        self.points, self.spent = images, self.steps  # [b, ...] those points; [b] steps before them
        self.since = 0  # steps since the last packing
        self._hold((~self.fallen).nonzero().flatten())

    def judge(self, points: Tensor, key: Key | None = None) -> Tensor:
        """Mean logits of fresh float32 passes, without dropout and without a graph. key: of these images; None: all."""
        key = key or self.chunk_key
        with exactly(self.network):
            return judged(self.network, points, points.new_zeros(len(points)).long(), key, self.passes)[1]

    def _verdict(self, points: Tensor, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """(share of the passes that are right, mean logits) at points of these images of the chunk."""
        with exactly(self.network):
            return judged(self.network, points, self.chunk_labels[rows], self.chunk_key[rows], self.passes)

    def likeliest(self, rank: int) -> Tensor:
        """[N] for each image the class of the so many-th largest logit when clean; 0 is its own."""
        return self.logits.argsort(dim=1, descending=True)[:, rank]

    def note(self, fooled: Tensor, points: Tensor) -> None:
        """After a step: whose `points` [b, ...] fooled the network by the attack's own forward, [b] bool."""
        fresh = fooled & ~self.claimed if self.passes == 1 else fooled  # by chance: later points have climbed further
        self.points = torch.where(wide(fresh, points), points, self.points)
        self.claimed = self.claimed | fooled
        self.spent = self.spent + ~self.claimed
        self.since += 1

    def due(self, step: int) -> bool:
        """Whether a packing comes after `step`."""
        if self.passes > 1:
            return False
        if self.waits:
            return (step + 1) % self.every == 0
        return bool(self.claimed.any()) or not bool(self.real[: self.count].all())

    def pack(self, state: State) -> State:
        """Set aside what has fallen; the rows of `state` (a dataclass of tensors [b, ...]) that are still needed."""
        self._settle((self.claimed & self.real).nonzero().flatten(), self.points)
        return self._keep(state)

    def close(self, points: Tensor) -> None:
        """At the end of a run: set aside what has fallen, and keep its best points [b, ...] of the others."""
        rows = self.real.nonzero().flatten()
        if self.passes > 1:
            self._settle(rows, points)
        self._settle(rows, torch.where(wide(self.claimed, points), self.points, points))
        self._keep(None)

    def choose(self, chosen: Tensor) -> None:
        """Before a run: hold only those of the standing images of the chunk that are `chosen` [N] bool."""
        self._hold((~self.fallen & chosen).nonzero().flatten())

    def rest(self, hopeless: Tensor) -> None:
        """After a step: rows [b] bool that are given up for this run, though they stand; gone at the next packing."""
        gone = hopeless & ~self.claimed & self.real
        self.steps.index_add_(0, self.row, self.spent * gone)
        self.real = self.real & ~gone

    def _keep(self, state: Any) -> Any:
        """Pack what stands; the rows of `state` that are still needed."""
        # a claim that was refused stood all the while
        spent = torch.where(self.fallen[self.row], self.spent, self.since)
        self.steps.index_add_(0, self.row, spent * self.real)
        kept = (~self.fallen[self.row] & self.real).nonzero().flatten()
        if len(kept) == self.count:
            self.claimed, self.spent, self.since = torch.zeros_like(self.claimed), torch.zeros_like(self.spent), 0
            return state
        rows = self._hold(kept, self.row[kept])
        if state is None:
            return None
        named = {f.name: getattr(state, f.name) for f in fields(state)}
        return replace(state, **{name: value[rows] for name, value in named.items() if isinstance(value, Tensor)})

    def _settle(self, rows: Tensor, points: Tensor) -> None:
        """Judge the points of some packed rows again, and record what they do."""
        if not len(rows):
            return
        wanted, index = self._padded(rows), self.row[rows]
        padded = points[wanted]
        share, logits = (seen[: len(rows)] for seen in self._verdict(padded, self.row[wanted]))
        now = margin(logits, self.chunk_labels[index])
        real = finite(padded)[: len(rows)]  # a point that is no number counts for nothing
        share, now = torch.where(real, share, 1.0), torch.where(real, now, torch.inf)
        better = now < self.margin[index]
        if self.passes > 1:
            better = (share < self.share[index]) | ((share == self.share[index]) & better)
        self.found[index] = torch.where(wide(better, padded), padded[: len(rows)], self.found[index])
        self.margin[index] = torch.where(better, now, self.margin[index])
        self.share[index] = torch.minimum(share, self.share[index])
        self.fallen[index] |= share == 0

    def _hold(self, kept: Tensor, index: Tensor | None = None) -> Tensor:
        """Pack the rows `kept`, which are the chunk's rows `index`; the packed rows to take, padding included."""
        rows = self._padded(kept)
        self.count = len(kept)
        self.row = self._padded(kept if index is None else index)
        self.real = torch.arange(len(rows), device=rows.device) < self.count
        self.images, self.labels = self.chunk[self.row], self.chunk_labels[self.row]
        self.targets, self.key = self.chunk_targets[self.row], self.chunk_key[self.row]
        self.claimed = torch.zeros_like(self.real)
        self.spent, self.since = torch.zeros_like(self.row), 0
        self.points = self.images
        return rows

    def _padded(self, rows: Tensor) -> Tensor:
        """[rung] the rows, then copies of the first; the rows alone where nobody waits for the device."""
        if not (self.waits and len(rows)):
            return rows
        return torch.cat([rows, rows[:1].expand(rung(len(rows)) - len(rows))])


@dataclass(frozen=True)
class Verdict:
    """What some points are worth, a row a point."""

    told: Tensor  # [b] share of the passes that were right, by which points are compared: of draws common to all
    right: Tensor  # [b] the share that is reported: told itself, or that of fresh passes, which have chosen nothing


class Cascade:
    """Images under one attack after another, each made on those that some pass is still right at.

        cascade = Cascade(images, told)            # told [N]: the share of the passes that are right so far
        for attack in attacks:
            cascade.turn(lambda rows: points, lambda points, rows: Verdict(told, right))

    Nothing is decided by one draw where `told` is a mean over passes, and of one pass it is 0 or 1. An attack's turn
    costs what it costs and its verdict, on the rows that stand alone. AutoAttack holds one for all its attacks; an
    evaluation one for each, since it keeps what came before.
    """

    def __init__(self, images: Tensor, told: Tensor, right: Tensor | None = None) -> None:
        """told, right [N], on any device; inf where nothing was judged yet. right: None where told is what counts."""
        self.told, self.right = told.clone(), (told if right is None else right).clone()
        self.points = images.clone()  # [N, ...] the worst of each image; of those alike the last

    @property
    def rows(self) -> Tensor:
        """[b] the images that stand: right in one pass at least."""
        return (self.told > 0).nonzero().flatten().to(self.points.device)

    def turn(self, attack: Callable[[Tensor], Tensor], judge: Callable[[Tensor, Tensor], Verdict]) -> bool:
        """One attack: the points of rows [b], judged. False, and nothing is asked, where no image stands."""
        rows = self.rows
        if not len(rows):
            return False
        points = attack(rows)
        verdict, at = judge(points, rows), rows.to(self.told.device)
        now, right = verdict.told.to(at.device), verdict.right.to(at.device)
        alike = (now <= self.told[at]).to(rows.device)
        self.points[rows] = torch.where(wide(alike, points), points, self.points[rows])
        self.right[at] = torch.where(now < self.told[at], right, self.right[at])
        self.told[at] = torch.minimum(now, self.told[at])
        return True


def rung(count: int) -> int:
    """The packed size for so many images: the next multiple of a sixteenth of the power of two above them."""
    step = max(1, 2 ** ((count - 1).bit_length() - 4))
    return -(-count // step) * step
