"""Shards: the data set of a run, labelled images in tar files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from robust_train.data.augment import ImageAugmentation, NoAugmentation
from robust_train.data.files.listed import chosen
from robust_train.data.files.own import addresses, labels_for
from robust_train.data.indexed import Indexed
from robust_train.data.loader import Allowance, Decoder, Task, batches, label_refusal
from robust_train.data.manifest import pixels_of, shard_name
from robust_train.data.names import class_names
from robust_train.data.order import augmentation_seed, samples_of
from robust_train.data.streams import Streams
from robust_train.data.table import Table, open_table
from robust_train.nouns import Batch, Dataset, Extra, Place, Shape
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.paths import FilePath, home_cache
from robust_train.read.registry import datasets


@datasets.register("shards")
@dataclass(frozen=True)
class Shards(Dataset):
    """Labelled images in WebDataset shards: KEY.jpg, .png or the like beside KEY.cls or KEY.json, in .tar or .tar.gz.

    A folder of class folders, or a .csv or .tsv of path,label, stands for the shards that it becomes once, in `cache`.

    What training samples carry beside is read from KEY.NAME.npy into `Batch.extra`; a sample where it is absent or has
    another shape is broken. Validation reads images and labels alone.

    The images of an update are a function of (seed, update) alone: neither ranks nor workers nor accumulation change
    them. An epoch has floor(n / batch) updates; the n mod batch samples left over are others in each epoch. A broken
    sample's place is taken by the next good one of its shard, and `Batch.broken` is 1 there; validation leaves it out.
    """

    train: (
        FilePath | tuple[FilePath, ...]
    )  # shards: paths, folders, globs, brace lists, pipe: commands, URLs; or class folders, or a .csv of path,label
    classes: int  # labels run from 0 to classes - 1
    size: int  # side of the square images that the network takes, in pixels
    validation: FilePath | tuple[FilePath, ...] | None = (
        None  # validation images, named like the training ones; null: none
    )
    channels: Literal[1, 3] = 3  # 3: colour; 1: grey
    augment: ImageAugmentation = field(default_factory=NoAugmentation)  # what is done to each training image
    crop: float = 0.875  # share of the short side that evaluation cuts out; images of side `size` stay as they are
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # evaluation's resizing; the model's own, as timm says it
    reader: Literal["indexed", "streams"] = "indexed"  # indexed: by offset, from disk; streams: in order, from far away
    streams: int = 8  # streams reader: equal parts read side by side; every world size that divides it fits
    window: int = 1024  # streams reader: samples that each stream holds and shuffles at a time
    workers: int = 0  # processes a rank that decode; 0: the training process itself
    cache: FilePath = field(default_factory=home_cache)  # folder here for indices, unpacked and fetched shards
    missing: int = 0  # broken samples that are allowed before the run stops
    views: int = 1  # augmented views of each training image, each drawn anew: 2 for self-supervision
    labelled: bool = True  # false: samples without labels, such as a set beside another; every target is 0
    extra: Mapping[str, Extra] = field(default_factory=dict)  # training samples carry beside: {resp: {shape: [89]}}
    listed: FilePath | None = (
        None  # file of image names, one a line, such as RobustBench's: evaluation takes those alone
    )

    examples = """
    - {train: 'train-{0000..0003}.tar', validation: [val.tar], classes: 10, size: 32,
      augment: {use: crop-flip, flip: 0.0}}
    """
    harmless: ClassVar[tuple[str, ...]] = (  # to what is judged; `contents` says what the paths lead to
        "train",
        "validation",
        "augment",
        "reader",
        "streams",
        "window",
        "workers",
        "cache",
        "missing",
        "listed",
        "views",
    )

    def __post_init__(self) -> None:
        for name in ("classes", "size", "streams", "window", "views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("workers", "missing"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop:g} is not in (0, 1]: it is a share of the image's side")

    @property
    def shape(self) -> Shape:
        """Square images."""
        return (self.channels, self.size, self.size)

    # -- before training --------------------------------------------------------------------------

    def prepare(self) -> None:
        """Fetch, unpack and index what has not been; any number of processes may do so at once. Raises DataError."""
        _ = self._train, self._validation, self._names
        if self.listed is not None:
            _ = self._chosen

    def check(self) -> None:
        """Whether all shards are there, labels in range, and no more samples broken than allowed. Raises DataError."""
        for source in (self._train, self._validation):
            if isinstance(source, Streams):
                source.check(self.classes)
                continue
            for record in source.strangers(self.classes):
                raise DataError(f"shard {source.name(record.shard)} {label_refusal(record, self.classes)}")
            self._allowance(source)

    def train_size(self) -> int:
        """Training samples, broken ones included."""
        return len(self._train)

    def validation_size(self) -> int:
        """Validation samples, broken ones included; 0 where no validation shards are named."""
        return len(self._validation) if self.listed is None else len(self._chosen)

    def epoch(self, batch: int) -> int:
        """Updates an epoch: whole batches, of streams as many as each holds of its share."""
        if isinstance(self._train, Streams):
            return len(self._train) // self.streams // max(1, batch // self.streams)
        return len(self._train) // batch

    def checksums(self) -> dict[str, str]:
        """sha256 of every shard, by name: which data a checkpoint was trained on."""
        urls = [*self._places[0], *self._places[1]]
        sums = [*self._train.checksums(), *self._validation.checksums()]
        names = [shard_name(url) for url in urls]
        often = Counter(names)
        return {name if often[name] == 1 else url: sum for name, url, sum in zip(names, urls, sums, strict=True)}

    def known(self) -> dict[str, str]:
        """sha256 of every shard, and of its index: a manifest may speak for a shard that has been replaced."""
        urls = [*self._places[0], *self._places[1]]
        indices = [digest for source in (self._train, self._validation) for digest in source.digests()]
        by_url = dict(zip(urls, indices, strict=True))
        sums = self.checksums()
        return {
            name: f"{sums[name]} {digest}"
            for url, digest in by_url.items()
            for name in (shard_name(url), url)
            if name in sums
        }

    def contents(self) -> dict[str, str | None]:
        """sha256 of the validation shards and of what their index says: keys, labels, sizes; of the chosen samples."""
        chosen = None if self.listed is None else hashlib.sha256(self._chosen.astype(np.int64).tobytes()).hexdigest()
        return {"index": self._validation.fingerprint(), "chosen": chosen}

    def preprocessing(self) -> list[str]:
        """What the shards' manifests say was done when they were made, and what is done when they are read."""
        made = Counter(pixels_of(url) for url in self._places[1])
        unknown, said = made.pop(None, 0), [f"{how}, when shards were made" for how in made if how]
        if len(made) + bool(unknown) > 1 and said:  # shards of several makings
            every = made.total() + unknown
            said = [f"{count:,} of {every:,} shards: {how}, when they were made" for how, count in made.items() if how]
        if unknown:
            few = f"{unknown:,} of {len(self._places[1]):,} shards: " if made else ""
            said.append(f"{few}what was done to the pixels before is not known: no manifest of make_shards says it")
        short, square = int(self.size / self.crop), f"{self.size} x {self.size}"
        read = f"short sides resized to {short} pixels ({self.interpolation}), the middle {square} cut out"
        return [*said, f"{read}; images of {square} as they are"]

    def names(self) -> list[str]:
        """What the classes are called, by classes.json beside the shards; numbers where there is none."""
        return list(self._names)

    # -- batches ----------------------------------------------------------------------------------

    def batches(self, place: Place, batch: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """This rank's share of each global batch of `batch` images, uint8, from update `start` on, without end.

        Rank r of W holds positions r B / W to (r + 1) B / W. Raises ConfigError where batch or streams do not divide,
        DataError for what is wrong with the data.
        """
        if batch % place.world:
            raise ConfigError(
                f"batch={batch} cannot be dealt to {place.world} ranks. Use {_divisors(batch)} ranks, or another batch."
            )
        train = self._train
        if len(train) < batch:
            raise ConfigError(
                f"batch={batch} is larger than the data set, which has {len(train):,} samples. Use a smaller batch."
            )
        if isinstance(train, Streams):
            tasks = train.tasks(place, batch, seed, start)
        else:
            tasks = _indexed_tasks(len(train), place, batch, seed, start)
        return self._decoded(train, self.augment, tasks, place)

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        """This rank's chunks of `chunk` consecutive validation images, as evaluation sees them, uint8.

        Chunk i of the first `limit` images goes to rank i mod world; the last one may be smaller, and any where samples
        are broken. `position` counts through the validation set.
        """
        total = self.validation_size()
        images = total if limit is None else min(limit, total)
        starts = range(place.rank * chunk, images, place.world * chunk)
        chunks = (np.arange(first, min(first + chunk, images)) for first in starts)
        tasks = (Task(ids, ids if self.listed is None else self._chosen[ids], 0) for ids in chunks)
        return self._decoded(self._validation, None, tasks, place)

    # -- what it is made of -----------------------------------------------------------------------

    @cached_property
    def _train(self) -> Indexed | Streams:
        if self.reader == "streams":
            return Streams.open(self._places[0], self.streams, self.window, tuple(self.extra), self.labelled)
        return self._indexed(self._places[0], tuple(self.extra))

    @cached_property
    def _validation(self) -> Indexed:
        return Indexed(Table("")) if self.validation is None else self._indexed(self._places[1], ())

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(class_names([*self._places[0], *self._places[1]], self.classes))

    @cached_property
    def _places(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The shards of training and of validation, one an address; of folders and tables those they become."""
        rest = self.classes, self.missing, max(self.workers, 1)
        cache = Path(self.cache).expanduser()
        train = addresses(self.train, cache, labels_for(self.train, self.train), *rest)
        if self.validation is None:
            return train, ()
        return train, addresses(self.validation, cache, labels_for(self.validation, self.train), *rest)

    @cached_property
    def _chosen(self) -> np.ndarray:
        """The validation samples that `listed` names, in its order. Raises DataError for names that are not there."""
        return chosen(Path(str(self.listed)).expanduser(), self._validation.keys(), str(self.validation))

    def _indexed(self, urls: tuple[str, ...], extra: tuple[str, ...]) -> Indexed:
        return Indexed(open_table(urls, Path(self.cache).expanduser()), extra, self.labelled)

    def _allowance(self, source: Indexed | Streams) -> Allowance:
        known = () if isinstance(source, Streams) else source.faults
        said = ((sample, f"shard {source.name(shard)}: sample {fault}") for sample, shard, fault in known)
        return Allowance(self.missing, len(source), said)

    def _decoded(
        self,
        source: Indexed | Streams,
        augment: ImageAugmentation | None,
        tasks: Generator[Task, None, None],
        place: Place,
    ) -> Iterator[Batch]:
        bilinear = self.interpolation == "bilinear"
        decoder = Decoder(
            source,
            augment,
            self.size,
            self.channels,
            self.crop,
            self.classes,
            bilinear=bilinear,
            extra={} if augment is None else self.extra,
            views=1 if augment is None else self.views,
        )
        return batches(decoder, tasks, place, self.workers, source.name, self._allowance(source))


def _indexed_tasks(n: int, place: Place, batch: int, seed: int, start: int) -> Generator[Task, None, None]:
    share = batch // place.world
    position = np.arange(place.rank * share, (place.rank + 1) * share)
    for update in count(start):
        epoch, samples = samples_of(update, n, batch, seed)
        yield Task(position, samples[position], augmentation_seed(seed, epoch))


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
