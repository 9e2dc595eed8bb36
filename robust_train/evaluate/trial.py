"""A trial: one attack on the images of a chunk, and the column of verdicts that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from robust_train.attacks import chance
from robust_train.attacks.chance import Chancy, passes
from robust_train.attacks.given import FAR, counted, counting, finite, wide
from robust_train.attacks.standing import Cascade, Standing, Verdict
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.counted import watching
from robust_train.evaluate.given import Given
from robust_train.keyed import Key
from robust_train.losses import correct, full, labels_of, margin
from robust_train.models.foreign import moded
from robust_train.nouns import Attack, Batch

CLEAN = "clean"


@dataclass(frozen=True)
class Trial:
    """One attack and the trials before it: it is made on the images that are right after those, and on no others."""

    name: str  # "linf/apgd-t": the threat model and the attack's label, with what tells it from others
    attack: Attack | None  # None: the clean images
    after: tuple[str, ...] = (CLEAN,)  # names of earlier trials
    threat: str = ""  # the tag of its threat model
    role: Literal["clean", "attack", "curve", "check"] = "attack"  # what its figure is for
    images: int | None = None  # only the first so many of the data set

    harmless: ClassVar[tuple[str, ...]] = ("images",)  # which images there are stands with each chunk

    @property
    def by_row(self) -> bool:
        """Whether no image's point depends on the others of its chunk, whatever the attack is made of."""
        return all(attack.by_row for attack in _within(self.attack))

    def cost(self, draws: int = 1) -> float:
        """Forward passes for an image that is attacked to the end, its verdicts means over `draws` passes.

        Attacks that set images aside judge by passes of their own then: when clean, and twice at a run's end.
        """
        verdict = 1 if draws == 1 else 2 * draws
        if self.attack is None:
            return verdict
        own = 3 * chance.PASSES if draws > 1 and hasattr(self.attack, "search") else 0
        return self.attack.cost() + own + verdict


def _within(value: Any) -> Iterator[Attack]:
    """An attack and those that it is made of."""
    if isinstance(value, Attack):
        yield value
    each = value if isinstance(value, (tuple, list)) else [getattr(value, f.name) for f in _fields(value)]
    for one in each:
        yield from _within(one)


def _fields(value: Any) -> tuple[Any, ...]:
    return fields(value) if is_dataclass(value) and not isinstance(value, type) else ()


@dataclass(frozen=True)
class Column:
    """What a trial found, a row an image of the chunk. An image that was not attacked has the verdict of before."""

    right: Tensor  # [n] share of the passes that were right after this trial and those before it; 0 or 1 for one pass
    margin: Tensor  # [n] z_y - max z_j at the point found, of the passes' mean logits; nan where not attacked
    distance: Tensor  # [n] how far the point is from the image, in the threat model's norm; nan where not attacked
    steps: Tensor  # [n] the attack's steps until the image fell, or in all; -1 where not attacked or not counted

    lost: Tensor | None = None  # [n] share of the attack's gradients in the image's chunk that were not finite
    broken: Tensor | None = None  # [n] bool: the point found was not finite, and the image was judged in its place
    told: Tensor | None = None  # [n] by chance: as right, over the passes by which points were chosen; else None
    forwards: Tensor | None = None  # [n] the attack's forward passes of the image; -1 where not attacked
    backwards: Tensor | None = None  # [n] and backward ones
    refused: Tensor | None = None  # [n] bool, of a function's points: which were no points, and count for nothing

    def __getitem__(self, rows: slice) -> Column:
        """The same column with some of its rows."""
        own: Any = {name: None if tensor is None else tensor[rows] for name, tensor in vars(self).items()}
        return Column(**own)

    @property
    def choosing(self) -> Tensor:
        """[n] what the worst of several columns is told by: not the passes of the figure, whose luck it would keep."""
        return self.right if self.told is None else self.told

    @property
    def stands(self) -> Tensor:
        """[n] bool: right in more than half of the passes."""
        return self.right > 0.5


def worst(columns: list[Column]) -> tuple[Tensor, Tensor]:
    """([n] share right, [n] share that told) of each image's worst column."""
    told, of = torch.stack([column.choosing for column in columns]).min(0)
    return torch.stack([column.right for column in columns]).gather(0, of[None])[0], told


def tried(
    network: Any, batch: Batch, trial: Trial, before: list[Column], key: Key, draws: int = 1
) -> tuple[Column, Tensor]:
    """The trial's column and the points [n, ...] it found (the images where it did not attack).

    Only images that were right after every column of `before`, in one pass at least, are attacked. key: of the whole
    evaluation; its rows become the samples, so that a verdict does not depend on the device, and on the chunk through
    rounding alone. draws: passes a verdict is averaged over, for a network with randomness of its own; torch's
    generator is seeded from the chunk for it. Its points are chosen (among trials too) by as many passes, of the same
    draws for every trial, and the share is that of fresh ones: the least of several noisy shares is too small. That
    costs 2 draws forwards a trial. Verdicts are fresh float32 forwards in eval mode. Raises NumericsError for a point
    outside the threat model; of a function's such points the images stand in their place.
    """
    count = len(batch)
    labels = labels_of(batch.targets)
    common, key = key.of("choice").rows(batch.sample), key.of(trial.name).rows(batch.sample)
    network = moded(network)
    subject = network if draws == 1 or passes(network) > 1 else Chancy(network)
    points = batch.images.clone()
    far, steps, spent = torch.full((count,), torch.nan), torch.full((count,), -1), torch.full((2, count), -1)
    gap, lost, broken = torch.full((count,), torch.nan), torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    refused = torch.zeros(count, dtype=torch.bool)

    def attack(rows: Tensor) -> Tensor:
        if trial.attack is None:
            return batch.images[rows]
        images, reach, at = batch.images[rows], trial.attack.reach(), rows.cpu()
        with counting() as faults, watching(subject, images) as counts:
            found, steps[at] = attempted(subject, trial.attack, images, batch.targets[rows], key[rows])
        spent[:, at] = torch.stack([counts.forwards, counts.backwards]).cpu()
        if isinstance(trial.attack, Given):
            sound, far[at] = _sound(reach[0], images, found)
            refused[at] = ~sound.cpu()
            found = torch.where(wide(sound, found), found, images)
        else:
            found, astray = counted(trial.name, reach, images, found)
            broken[at] = (astray | faults.broken).cpu()
            far[at] = reach[0].distance(images, found).float().cpu()
        lost[at], points[rows] = faults.share, found
        return points[rows]

    def judge(found: Tensor, rows: Tensor) -> Verdict:
        seen = [_logits(network, found) for _ in range(draws)]
        gap[rows.cpu()] = margin(torch.stack(seen).mean(0), labels[rows]).float().cpu()
        share = torch.stack([correct(logits, labels[rows]) for logits in seen]).mean(0)
        if draws == 1:
            return Verdict(share, share)
        return Verdict(chance.judged(subject, found, labels[rows], common[rows], draws)[0], share)

    nothing = torch.full((count,), torch.inf)
    right, told = worst(before) if before else (nothing, nothing)
    cascade = Cascade(batch.images, told, right)
    with judged(network), seeded(network, key, batch[cascade.rows]):
        cascade.turn(attack, judge)
    column = Column(cascade.right, gap, far, steps, told=cascade.told if draws > 1 else None)
    if trial.attack is None:
        return column, points
    forwards, backwards = spent.to(torch.int32).unbind()
    column = replace(column, lost=lost, broken=broken, forwards=forwards, backwards=backwards)
    return (replace(column, refused=refused) if isinstance(trial.attack, Given) else column), points


def attempted(network: Any, attack: Attack, images: Tensor, targets: Tensor, key: Key) -> tuple[Tensor, Tensor]:
    """The points of an attack, and the steps it spent on each image; -1 where it does not count them."""
    search = getattr(attack, "search", None)
    if search is None:
        return attack(network, images, targets, key), torch.full((len(images),), -1)
    standing: Standing = search(network, images, targets, key)
    return standing.found, standing.steps.cpu()


def _logits(network: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return full(network(images))


def _sound(threat: Any, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """([n] whether each point is finite, in [0, 1] and in the ball, [n] distances, nan where it is not finite)."""
    real = finite(points)
    clean = torch.where(wide(real, points), points, images)
    far = threat.distance(images, clean).float()
    boxed = ((clean >= 0) & (clean <= 1)).flatten(1).all(1)
    return real & boxed & (far <= threat.eps * (1 + FAR[0]) + FAR[1]), far.masked_fill(~real, torch.nan).cpu()


@contextmanager
def seeded(network: Any, key: Key, batch: Batch) -> Iterator[None]:
    """A network's own randomness made a function of the key and the images, for as long as they are judged.

    Our networks' noise is drawn by sample. For others torch's generator is set from the first sample, and put back.
    """
    devices = [batch.images.device] if batch.images.is_cuda else []
    first = int(batch.sample[0]) if len(batch) else 0
    with moded(network).noise(key.of("network").rows(batch.sample)), torch.random.fork_rng(devices):
        torch.manual_seed(key.of("network").at(first).seed & (2**63 - 1))
        yield
