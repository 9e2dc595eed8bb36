"""The nouns every part of the project speaks: batches, losses, schedules, and the roots of the registries.

Nothing of ours is imported here; everything else imports this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
"""Of one sample: (channels, height, width) of an image, (T, 2, height, width) of events."""

PerImage = Callable[[Tensor, Tensor], Tensor]
"""A loss of each image alone: (logits [B, C], targets [B] or [B, C]) -> [B], in float32 or better."""

Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What an attack raises, at points of some of its images: (points [b, ...], rows [b]) -> (score [b], logits [b, C]).

rows: which of the images that the goal was made for the points belong to; attacks set images aside, and pad."""


@dataclass(frozen=True)
class Scale:
    """How what a data set stores becomes what a network sees: integers are divided by `divisor`, floats stay.

    Pixels k become k / 255; events and counts stay what they are: Scale(1, 0, most). low, high: the least and the most
    that a network then sees. Attacks keep to [0, 1], and refuse another box.
    """

    divisor: float = 255.0
    low: float = 0.0
    high: float = 1.0

    def __call__(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """Stored values as a network sees them."""
        return stored if stored.is_floating_point() else stored.to(dtype) / self.divisor

    @property
    def boxed(self) -> bool:
        """Whether values lie in [0, 1], as attacks have it."""
        return (self.low, self.high) == (0.0, 1.0)


PIXELS = Scale()


@dataclass(frozen=True)
class Extra:
    """What each sample carries beside its image and label: neural responses, counts, an index into other images."""

    shape: Shape = ()  # of one sample's: [89] for 89 neurons; []: one number
    whole: bool = False  # integers (int64), such as an index; else float32


@dataclass(frozen=True)
class Batch:
    """Some consecutive samples of a global batch.

    images [B, *shape]: as the data set stores them (uint8 pixels) until they are on the device, then float.
    targets [B] int64 labels, or [B, C] float distributions.
    position [B] int64: the place in the global batch. sample [B] int64: the identity in the data set.
    extra: what each sample carries beside, by name, each [B, ...]; else empty.
    views: further augmented views of the same samples, each like images.
    broken [B]: 1 where another sample stands in for one that cannot be read; None where there are none, and always in
    validation, whose batches leave such samples out.
    beside: as many samples of a second data set, which come along row by row; None: there is none.
    """

    images: Tensor
    targets: Tensor
    position: Tensor
    sample: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    views: tuple[Tensor, ...] = ()
    broken: Tensor | None = None
    beside: Batch | None = None
    scale: Scale = PIXELS

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The same batch with some of its rows."""
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch on a device: one copy of the bytes, and only there stored values become floats in `dtype`."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(
            moved,
            images=self.scale(moved.images, dtype),
            views=tuple(self.scale(view, dtype) for view in moved.views),
            extra={name: v.to(dtype) if v.is_floating_point() else v for name, v in moved.extra.items()},
            beside=None if moved.beside is None else moved.beside.to(device, dtype),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.images),
            change(self.targets),
            change(self.position),
            change(self.sample),
            {name: change(tensor) for name, tensor in self.extra.items()},
            tuple(change(view) for view in self.views),
            None if self.broken is None else change(self.broken),
            None if self.beside is None else self.beside._each(change),
            self.scale,
        )


@dataclass(frozen=True)
class State:
    """What the engine keeps for an objective between updates; the objective itself is frozen.

    counts: sums over the updates so far, float64 on the host, by the names that objectives give in `Loss.counts`.
    parts: the modules that the objective asked for in `Objective.parts`, by name.
    """

    counts: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A module that an objective owns beside the network: a generator, a head, a multiplier, a teacher.

        descends    w <- optimiser(w, d of[name] / d w)           with an optimiser (a negative scalar ascends)
        follows     a <- decay a + (1 - decay) w after an update  with average_of, in eval mode, without a gradient
        stays       as it is, or as `Objective.settle` moves it   with neither

    Alike on every rank; saved and restored with the network.
    """

    module: nn.Module  # its names are saved; it draws nothing at random but by the keys it is given
    optimiser: Any = None  # a robust_train.settings.optimiser.Optimiser; its lr may be a schedule
    average_of: str | None = None  # "network" (the module is then a copy of it), or another part's name
    decay: float | Schedule = 0.999  # how much of an average an update keeps

    def __post_init__(self) -> None:
        if self.optimiser is not None and self.average_of is not None:
            raise ValueError(f"average_of={self.average_of!r} and an optimiser: only one of them can move a part")


@dataclass(frozen=True)
class Loss:
    """What an objective makes of one micro-batch. Every micro-batch and rank of an update gives the same names.

    total: the scalar the network's parameters descend, a mean over the images; None: the network has no gradient in
        this update, and is left as it is by optimiser and decay.
    metrics: scalars (means over the images), recorded as averages over the global batch; the engine detaches them.
    counts: scalars or vectors, summed over the global batch and added to `State.counts` after the update.
    of: {part: the scalar, a mean over the images, that the part's parameters descend}; no other parameter sees it.
        A part that is not named is left alone in this update.
    sums: tensors, summed over the global batch, handed to `Objective.settle` of this update and forgotten.
    """

    total: Tensor | None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    of: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Noun:
    """A thing that a run names by `use:`. Subclasses are frozen dataclasses, registered in their folder."""

    use: str = ""  # the registered name; set by the registry


class Schedule(Noun, ABC):
    """A number that changes over a run and stands wherever a number stands."""

    @abstractmethod
    def __call__(self, update: int, updates: int) -> float:
        """The number at `update` (from 0) of a run of `updates`."""


def at(value: Any, update: int, updates: int) -> Any:
    """`value` with each schedule in it, however deep, replaced by its number at `update` of `updates`."""
    if isinstance(value, Schedule):
        return value(update, updates)
    if is_dataclass(value) and not isinstance(value, type):
        now = {f.name: at(getattr(value, f.name), update, updates) for f in fields(value) if f.init}
        changed = {name: new for name, new in now.items() if new is not getattr(value, name)}
        return replace(value, **changed) if changed else value
    if isinstance(value, (tuple, list)):
        entries = [at(entry, update, updates) for entry in value]
        return value if all(new is old for new, old in zip(entries, value, strict=True)) else type(value)(entries)
    return value


def number(value: float | Schedule) -> float:
    """A number that may be a schedule in a run, where it must be a number by now."""
    if isinstance(value, Schedule):
        raise ValueError(f"{value} stands where a number is needed: take at(..., update, updates) of its holder first")
    return value


class Threat(Noun, ABC):
    """A set of allowed perturbations with coordinates `z`, and how to move in it.

    `z` is a tensor [B, ...] or a tuple of such (one per level); `images` [B, ...] in [0, 1].
    Nothing here needs a graph. Every image is treated alone: a row never depends on another row.
    """

    @abstractmethod
    def start(self, images: Tensor, key: Any) -> Any:
        """A random point of the set, from the key's rows; inside ball and box."""

    @abstractmethod
    def zero(self, images: Tensor) -> Any:
        """The point that changes nothing."""

    @abstractmethod
    def apply(self, images: Tensor, z: Any) -> Tensor:
        """Adversarial images in [0, 1]."""

    @abstractmethod
    def step(self, images: Tensor, z: Any, gradient: Tensor, size: float) -> Any:
        """One projected step of `size`, in the threat's unit, that raises a loss whose image gradient is given."""

    @abstractmethod
    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """[B]: how far each image was moved, in the unit of `eps`; for checks and reports."""

    def weight(self, z: Any, keep: Tensor, other: Any) -> Any:
        """Rows of `z` where keep [B] is true, else rows of `other` (best iterate, restarts)."""
        if isinstance(z, tuple):
            return tuple(self.weight(a, keep, b) for a, b in zip(z, other, strict=True))
        return torch.where(keep.view(-1, *[1] * (z.dim() - 1)), z, other)


class Goal(ABC):
    """What an attack raises, made anew for the images of each call: a divergence, a distance to a guide, a loss."""

    @abstractmethod
    def of(self, network: Any, images: Tensor, targets: Tensor, key: Any) -> Score:
        """What is asked about points of these images, each by its row.

        Called once a call, inside the attack's modes: its BatchNorm, its first masks, parameters frozen. What it looks
        at (the clean image's answer, a guide's features) it looks at here; that costs what it costs, once. key: names
        the images' rows.
        """


@dataclass(frozen=True)
class Raising(Goal):
    """The goal of a loss of each image alone: Raising(cross_entropy)."""

    loss: PerImage
    against: Tensor | None = None  # [B, ...] what it compares the logits with, in place of the targets

    def of(self, network: Any, images: Tensor, targets: Tensor, key: Any) -> Score:
        reference = targets if self.against is None else self.against

        def score(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = network(points)
            return self.loss(logits, reference[rows]), logits

        return score


class Attack(Noun, ABC):
    """A search in a threat model for what fools a network. Network parameters, modes and gradients stay untouched."""

    threat: Threat

    @abstractmethod
    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Any, goal: Goal | None = None) -> Tensor:
        """Adversarial images in [0, 1], inside the threat model, without a graph. goal: what it raises; None: its own.

        Raises ValueError for a goal where it raises none.
        """

    @abstractmethod
    def cost(self) -> float:
        """What a call costs, in forward passes of the images, beside what making its goal does."""

    def goals(self) -> int:
        """How often a call makes its goal."""
        return int(self.cost() > 0)

    @property
    def label(self) -> str:
        """The name that stands beside its figures: "pgd20"."""
        return f"{self.use.replace('-', '')}{getattr(self, 'steps', '')}"


class Objective(Noun, ABC):
    """What one update minimises. Frozen: what it must remember is in `state`, which is the engine's."""

    @abstractmethod
    def __call__(self, network: Any, batch: Batch, key: Any, state: State) -> Loss:
        """The loss of one micro-batch."""

    def parts(self, network: Any, data: Dataset) -> Mapping[str, Part]:
        """The modules it owns, by name; called once, torch's generator seeded from the run's seed. None by default."""
        return {}

    def settle(self, network: Any, state: State, sums: Mapping[str, Tensor], update: int, updates: int) -> None:
        """Called after each update, without gradient, alike on every rank: moves that no gradient says.

        It may change the network's parameters and those of parts in place. sums: as Loss says it. state: with this
        update's counts. By default nothing is moved.
        """

    @abstractmethod
    def cost(self) -> float:
        """What an update costs, in forward passes of the batch: 2K+3 for a K-step attack and one backward."""

    def groups(self) -> int:
        """Consecutive positions that a micro-batch may not cut (mixing); 1 where images do not meet."""
        return 1


class Model(Noun, ABC):
    """Builds a torch module from images to logits."""

    @abstractmethod
    def build(self, classes: int, shape: Shape) -> nn.Module:
        """The module for images [B, *shape], normalised, to logits [B, classes]; randomly initialised.

        Raises ConfigError for a shape that it does not take.
        """

    @abstractmethod
    def stages(self, model: nn.Module) -> Iterable[str]:
        """Names of the layers of a built model where hidden states [B, ...] may be mixed, first to last."""


class Edit(Noun, ABC):
    """A change of a built model: another stem, other activations, layers of another structure.

    It works in place: a layer that it does not touch keeps its name, so that weights of it still load, and the stages
    and the names of `no_weight_decay` stay right. What an edit adds begins at random.
    """

    @property
    def mean(self) -> tuple[float, ...] | None:
        """What it wants taken off the pixels, where the run names nothing; None: it does not mind."""
        return None

    @property
    def std(self) -> tuple[float, ...] | None:
        """What it wants the pixels divided by."""
        return None

    @abstractmethod
    def __call__(self, model: nn.Module, shape: Shape, classes: int) -> None:
        """Change `model`, from samples [B, *shape] to logits [B, classes], in place; ConfigError where it cannot."""


class Dataset(Noun):
    """Where labelled images come from, and what is peculiar to them."""

    if TYPE_CHECKING:  # what each has; at run time a dataclass would take an inherited property for its field's default

        @property
        def classes(self) -> int:
            """Labels run from 0 to classes - 1."""

        @property
        def shape(self) -> Shape:
            """Of one sample as the network takes it."""

        @property
        def scale(self) -> Scale:
            """How stored values become what the network sees; pixels where nothing is said."""

        @property
        def extra(self) -> Mapping[str, Extra]:
            """What each training sample carries beside, by name; nothing where nothing is said."""

        @property
        def views(self) -> int:
            """Augmented views of each training sample; 1 where nothing is said."""

        @property
        def beside(self) -> Dataset | None:
            """A second data set whose samples come along; none where nothing is said."""

        def prepare(self) -> None:
            """Make ready what has not been: fetch, unpack, index. Any number of processes may do so at once."""

        def check(self) -> None:
            """Raise DataError where shards are absent, labels out of range, or too many samples broken."""

        def train_size(self) -> int:
            """Training samples."""

        def validation_size(self) -> int:
            """Validation samples."""

        def names(self) -> list[str]:
            """What the classes are called, by label."""

        def checksums(self) -> dict[str, str]:
            """sha256 of every shard, by name."""

        def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
            """This rank's share of each global batch, as stored, from update `start` on, without end."""

        def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
            """This rank's chunks of consecutive validation images, as stored; `Place.numbered` says which each is.

            Chunk i holds positions i chunk to (i + 1) chunk, those of broken samples left out: then it is smaller, or
            empty, and no other chunk, position or key is another for it.
            """

    else:
        scale, extra, views, beside = PIXELS, {}, 1, None


class Augmentation(Noun):
    """What is done to each training image alone, before it meets others."""


class Mixing(Noun, ABC):
    """What is done to a group of training images and their targets together."""

    carries: ClassVar[frozenset[str]] = frozenset()
    """Of a batch's "extra", "views" and "beside", what it makes right for the mixed images; what else there is, a run
    refuses: what neurons say of a mixture of two pictures is no mixture of what they say of each."""

    group: int  # consecutive positions that meet; a micro-batch holds whole groups

    @abstractmethod
    def __call__(self, batch: Batch, key: Any, classes: int) -> Batch:
        """The batch mixed, targets as distributions [B, classes]."""


class Evaluator(Noun):
    """A network and data to a report, the same on any devices, resumable by sample."""


class Transform(Noun):
    """A trained network to another that answers like it."""


@dataclass(frozen=True)
class Place:
    """Where this process stands in the job."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes the job's records."""
        return self.rank == 0

    def numbered(self, chunks: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """This rank's validation chunks, each with its number: rank, rank + world, rank + 2 world, ..."""
        return zip(count(self.rank, self.world), chunks, strict=False)
