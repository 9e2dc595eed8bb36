"""Reading in order: shards that lie far away, each read about once an epoch by the whole job."""

from __future__ import annotations

import gzip
import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, count
from typing import IO, Any, TypeVar

import numpy as np

from robust_train.data.files.tar import Reader, Truncated
from robust_train.data.index import open_stream, truncated, unzipped
from robust_train.data.loader import Task, label_refusal
from robust_train.data.manifest import INDEX_COMMAND, entry_of, remote, shard_name
from robust_train.data.order import augmentation_seed, stream_order, window_order, windows
from robust_train.data.samples import Record, extra_of, grouped, image_of, label_of, refuse_dots
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError, DataError

AHEAD = 2  # tasks that are read before they are asked for

Item = TypeVar("Item")


@dataclass(frozen=True)
class FarShard:
    """A shard that is read from its beginning. samples and sha256 are its manifest's."""

    name: str
    url: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Streams:
    """Shards dealt to streams that are read side by side; sample numbers count through the shards as they are listed.

    Each epoch puts the shards into a random order, cuts the list of their samples into `streams` equal contiguous
    parts, and shuffles each within windows of `window` samples. A global batch of B takes B / streams from each stream;
    an epoch has floor(floor(n / streams) / (B / streams)) updates. The order depends on `streams` and `window`, never
    on the ranks. With four shards or more a stream, a shard is read about once an epoch: only those that a cut goes
    through are read twice. Going on from an update reads less than one window, and the head of one shard, in vain.
    Holds streams x window undecoded samples over all ranks.
    """

    shards: tuple[FarShard, ...]
    streams: int
    window: int
    extra: tuple[str, ...] = ()  # names of what each sample carries beside
    labelled: bool = True  # where not, every label is 0

    @classmethod
    def open(
        cls, urls: tuple[str, ...], streams: int, window: int, extra: tuple[str, ...] = (), labelled: bool = True
    ) -> Streams:
        """From addresses whose counts are in a manifest beside them. Raises DataError where they are not."""
        shards = []
        for url in urls:
            entry = entry_of(url)
            if entry is None:
                raise DataError(
                    f"shard {shard_name(url)}: no manifest.json beside it says how many samples it holds, which "
                    f"data.reader=streams must know. Write one ({INDEX_COMMAND}) and put it beside the shards, or use "
                    "data.reader=indexed."
                )
            if not entry.samples:
                raise DataError(f"shard {shard_name(url)} holds no samples. Remove it, or rewrite it.")
            shards.append(FarShard(shard_name(url), url, entry.samples, entry.sha256))
        return cls(tuple(shards), streams, window, extra, labelled)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def name(self, shard: int) -> str:
        """What a shard is called."""
        return self.shards[shard].name

    def checksums(self) -> list[str]:
        """sha256 of each shard."""
        return [shard.sha256 for shard in self.shards]

    def digests(self) -> list[str]:
        """Of each shard on this machine, the sha256 of its first MiB; its manifest may speak for another file."""

        def first(url: str) -> str:
            if remote(url):
                return ""
            with open(url, "rb") as file:
                return hashlib.sha256(file.read(2**20)).hexdigest()

        return [first(shard.url) for shard in self.shards]

    def check(self, classes: int) -> None:
        """Read the first sample of the first shard: whether the addresses answer, and the label is in range."""
        record = next(self.read(0))
        if not record.fault and not 0 <= record.label < classes:
            raise DataError(f"shard {self.shards[0].name} {label_refusal(record, classes)}")

    def record(self, sample: int) -> Record:
        """Streams have no order but their own."""
        raise TypeError(f"sample {sample} of a stream cannot be asked for; tasks of streams carry their records")

    def after(self, record: Record) -> Iterator[Record]:
        """The other samples of a record's shard, from the next one on, round to the one before it; reads it anew."""
        later = (other for other in self.read(record.shard) if other.number > record.number)
        return chain(later, (other for other in self.read(record.shard) if other.number < record.number))

    def read(self, shard: int) -> Iterator[Record]:
        """All samples of a shard, from the first. DataError where it ends early or holds another number of them."""
        said, number, held = self.shards[shard], 0, None
        with open_stream(said.url) as stream:
            try:
                for number, (key, parts) in enumerate(grouped(_files(stream, said.name)), 1):
                    if number > said.samples:
                        break
                    if held is not None:
                        yield held
                    refuse_dots(said.name, key, parts)
                    label = label_of(parts) if self.labelled else 0
                    held = Record(shard, number - 1, key, image_of(parts), label, extra_of(parts, self.extra))
            except (Truncated, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise truncated(said.name, number, error) from error
        if number != said.samples:  # known before the last sample is given out: who takes no more than that knows too
            many = "more" if number > said.samples else f"{number:,}"
            raise DataError(
                f"shard {said.name} holds {many} samples, but manifest.json beside it says {said.samples:,}. Copy "
                f"the shard again, or write the manifest anew: {INDEX_COMMAND}"
            )
        if held is not None:
            yield held

    def stream(self, stream: int, share: int, seed: int, epoch: int, place: int) -> Iterator[tuple[int, Record]]:
        """(sample, record) of one stream in an epoch, in the order they are given out, from `place` on."""
        order = stream_order(self._counts, self.streams, seed, epoch, stream)
        records: Iterator[Record] | None = None
        for number, first, end in windows(len(order), self.window, place):
            if records is None:
                records = self._listed(order.stretches(first))
            held, listed = [next(records) for _ in range(first, end)], order[first:end]
            for row in window_order(end - first, seed, epoch, stream, number)[max(0, place - first) :]:
                yield int(listed[row]), held[row]

    def tasks(self, place: Place, batch: int, seed: int, start: int) -> Generator[Task, None, None]:
        """This rank's tasks from update `start` on, read ahead by a thread. ConfigError where nothing divides."""
        if self.streams % place.world:
            fits = [n for n in range(1, self.streams + 1) if self.streams % n == 0]
            near = self.streams - self.streams % place.world or place.world
            raise ConfigError(
                f"streams={self.streams} cannot be dealt to {place.world} ranks. Use {', '.join(map(str, fits))} "
                f"ranks, or data.streams={near} (changes the order of the data)."
            )
        if batch % self.streams:
            raise ConfigError(
                f"batch={batch} cannot be taken equally from streams={self.streams}. Make data.streams a divisor of "
                "the batch (changes the order of the data), or the batch a multiple of it."
            )
        if len(self) // self.streams < batch // self.streams:
            raise ConfigError(
                f"batch={batch} is larger than what {self.streams} streams of {len(self):,} samples give."
            )
        return ahead(partial(self._tasks, place, batch, seed, start))

    def _tasks(self, place: Place, batch: int, seed: int, start: int) -> Generator[Task, None, None]:
        share, mine = batch // self.streams, self.streams // place.world
        numbers = range(place.rank * mine, (place.rank + 1) * mine)
        position = np.arange(numbers.start * share, numbers.stop * share)
        updates = len(self) // self.streams // share  # an epoch
        for epoch in count(start // updates):
            done = max(0, start - epoch * updates)
            streams = [self.stream(number, share, seed, epoch, done * share) for number in numbers]
            for _ in range(done, updates):
                taken = [next(stream) for stream in streams for _ in range(share)]
                samples = np.array([sample for sample, _ in taken])
                yield Task(position, samples, augmentation_seed(seed, epoch), tuple(record for _, record in taken))

    def _listed(self, stretches: Iterator[tuple[int, int]]) -> Iterator[Record]:
        """Records of (first sample, how many) in the order of reading, shard after shard."""
        for sample, many in stretches:
            shard = int(np.searchsorted(self._ends, sample, side="right"))
            first = sample - int(self._ends[shard]) + self.shards[shard].samples
            for record in self.read(shard):
                if record.number >= first:
                    yield record
                if record.number == first + many - 1:
                    break  # the rest, where there is any, is another stream's

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self._counts)


def _files(stream: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file of a shard that comes once, packed or not."""
    reader = Reader(unzipped(stream), name, seeks=False)
    for member in reader:
        if member.origin is not None:
            raise DataError(
                f"shard {name}: member {member.name!r} is a link to {member.origin!r}, whose bytes are gone when a "
                "stream comes to it. Use data.reader=indexed, or write the shard anew (tar --hard-dereference)."
            )
        yield member.name, reader.content()
    if not reader.ended:
        raise Truncated("the tar's end mark is missing")


def ahead(make: Callable[[], Generator[Item, None, None]]) -> Generator[Item, None, None]:
    """The items of `make()`, made by a thread that stays AHEAD of who takes them; its exceptions are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        items = make()
        try:
            for item in items:
                if not put((True, item)):
                    return
        except BaseException as error:  # whatever it is, it belongs to who waits for the items
            put((False, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="shards", daemon=True)
    thread.start()
    try:
        while True:
            good, item = ready.get()
            if not good:
                raise item
            yield item
    finally:
        stop.set()
        if thread is not threading.current_thread():  # garbage may be collected by any thread, this one included
            thread.join()
