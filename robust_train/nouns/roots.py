"""The roots of the registries: what an objective, a model, a data set must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from robust_train.nouns.learning import Loss, Part, State
from robust_train.nouns.samples import PIXELS, Batch, Extra, Place, Scale, Shape
from robust_train.nouns.schedule import Noun


class Objective(Noun, ABC):
    """What one update minimises. Frozen: what it must remember is in `state`, which is the engine's."""

    tells: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    """(name, unit, what it is) of its own in `Loss.metrics`, beside the names that many have (`--list metrics`)."""

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

    def calibrated_on(self) -> int:
        """Training samples that `calibrate` looks at; 0: it is not called."""
        return 0

    def calibrate(self, model: nn.Module, images: Tensor) -> None:
        """Set in `model`, in place and without gradient, what its initialisation takes from data.

        images [calibrated_on(), *shape]: as the model sees them, normalised; the first of the training order. Called
        once, at the beginning of a run that neither goes on nor has a `start`, after the edits, in eval mode. The model
        comes out the same on all ranks and at any world size.
        """


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

    spread: ClassVar[bool] = False  # whether a limit takes images evenly over the set, not the first

    def contents(self) -> Any:
        """What decides the validation images and labels beside the fields: what paths lead to. For fingerprints."""
        return self.checksums()

    def preprocessing(self) -> list[str]:
        """What the validation pixels went through before a network sees them, in order, for reports; empty: nothing."""
        return []

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

        def epoch(self, batch: int) -> int:
            """Updates in which each training sample is seen once, but for those that are left over."""

        def known(self) -> dict[str, str]:
            """What a checkpoint remembers of the data, by shard: where it is another at a restart, that is refused."""

        def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
            """This rank's share of each global batch, as stored, from update `start` on, without end."""

        def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
            """This rank's chunks of consecutive validation images, as stored; `Place.numbered` says which each is.

            Chunk i holds positions i chunk to (i + 1) chunk, those of broken samples left out: then it is smaller, or
            empty, and no other chunk, position or key is another for it.
            """

    else:
        scale, extra, views, beside = PIXELS, {}, 1, None

        def known(self) -> dict[str, str]:
            return self.checksums()

        def epoch(self, batch: int) -> int:
            return self.train_size() // batch


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


@dataclass(frozen=True)
class Piece:
    """One thing that an evaluator finds on each chunk of consecutive images, under a name of its own.

    A piece is a function of networks, images, seed and the pieces it needs: of no device and no order.
    """

    name: str
    what: Any = None  # all that decides it beside the evaluator's own fields: a trial, a corruption and its severity
    needs: tuple[str, ...] = ()  # earlier pieces, of the same chunk; a whole piece's are of every chunk
    networks: tuple[str, ...] | None = None  # those that are asked, by name; None: all
    data: Dataset | None = None  # images of its own; None: those that the evaluation is given
    on: str = ""  # what these are called
    images: int | None = None  # only the first so many
    whole: bool = False  # made once, of no images, from all that was found on what it needs: a fit over all chunks
    kept: bool = True  # False: made anew where a piece that needs it is made, such as images that several look at
    holds: tuple[str, ...] = ()  # tensors without which one that was kept by another evaluation is not taken
    by_row: bool = False  # whether each row is a function of its image, the networks and rounding: in any chunk
    cost: float = 1.0  # forward passes an image, for the progress
    tally: str = ""  # under which name its "right" is summed while the work is done

    harmless: ClassVar[tuple[str, ...]] = ("images", "kept", "holds", "by_row", "cost", "tally")


Tensors = Mapping[str, Tensor]
"""What a piece is: tensors by name, a row an image of its chunk where it is joined over chunks.

Names that begin with "apart/" are large: each chunk's lie in a file of their own, which is read when it is asked for.
Those that begin with "picture/" are few images worth a look: of each "picture/kind" [s] the least "picture/order" [s]
of all chunks are kept, with "picture/sample" [s] and what else is there.
"""


class Evaluator(Noun, ABC):
    """Networks and images to a report: the same on any devices, resumable by piece."""

    chunk: int  # consecutive images that are judged together
    images: int | None  # the first so many; None: all

    @abstractmethod
    def pieces(self, networks: Mapping[str, Any], data: Dataset, found: Any) -> Sequence[Piece]:
        """All that is to be done, each after those it needs, as far as `found` says it: asked again after each round.

        found: evaluate.columns.Columns, of what is there.
        """

    @abstractmethod
    def judge(
        self, networks: Mapping[str, Any], batch: Batch, piece: Piece, before: Mapping[str, Tensors], key: Any
    ) -> Tensors:
        """What is found on one chunk, on any device. before: the pieces it needs. key: of the whole evaluation.

        batch: sound images on the device, float in [0, 1]; of a whole piece none, and `before` is joined over chunks.
        """

    @abstractmethod
    def report(self, found: Any) -> Any:
        """What all pieces come to, evaluate.report.Report: sums over columns and nothing else. No network is asked."""


class Transform(Noun, ABC):
    """A trained network to another that is to answer like it: smaller, faster, of other layers."""

    @abstractmethod
    def __call__(self, network: Any, batches: Iterator[Batch], key: Any) -> tuple[Edit, dict[str, Tensor]]:
        """The edit that makes the other structure of `network.model`, and every tensor of the model so changed.

        The network, in eval mode, stays as it is. batches: training images in [0, 1] on its device, in the order of the
        run's first updates and without end; none is read before it is asked for. All that is random is drawn from
        `key`. The edit says all sizes, so that it can be made where the weights are not yet.
        """
