"""Which sample stands at which position of which global batch: pure functions of the seed and the update.

Ranks, workers and accumulation do not enter. n samples give floor(n / batch) updates an epoch; the n mod batch last of
an epoch's order are left out of it. The next epoch has another order and leaves out others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from robust_train.keyed import Key, bits
from robust_train.keyed.draws import words

WHOLE = 1 << 24  # samples up to which an epoch's order is an array in every process: 134 MB; above, a bijection
ROUNDS = 8


def permutation(n: int, key: Key) -> np.ndarray:
    """A random order of 0, ..., n - 1, int64 [n]: that of n 63-bit random numbers. Library versions do not enter.

    1.28 million take half a second of one core, once an epoch.
    """
    high, low = bits(key.rows(None), (n, 2)).unbind(1)
    return np.argsort(((high << 31) | (low >> 1)).numpy(), kind="stable")


@dataclass(frozen=True)
class Bijection:
    """A random order of 0, ..., n - 1 that is held nowhere: place p is computed when it is asked for.

        x = (l, r) with l in Z_a, r in Z_b, a b >= n;   l += F_i(r) mod a, then r += F_i(l) mod b, and so on;
        again where the result is no less than n

    A Feistel network over an arbitrary domain: each round can be undone, so the whole is a bijection, and walking on
    until the result is below n keeps it one (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections
    4 and 5). a and b are next to sqrt(n), so that hardly any place is walked on from. F_i are Philox's words of the
    key's stream i. Of n! orders it knows 2^64; that of another n is another.
    """

    n: int
    key: Key

    def __getitem__(self, places: slice) -> np.ndarray:
        """int64 [places] the samples at some places. Costs 8 words of Philox each."""
        found = np.arange(*places.indices(self.n), dtype=np.int64)
        walking = np.arange(len(found))
        while len(walking):
            found[walking] = self.walked(found[walking])
            walking = walking[found[walking] >= self.n]
        return found

    @cached_property
    def sides(self) -> tuple[int, int]:
        """(a, b)."""
        a = max(1, round(self.n**0.5))
        return a, -(-self.n // a)

    def walked(self, x: np.ndarray) -> np.ndarray:
        """One pass through all rounds, on {0, ..., a b - 1}."""
        a, b = self.sides
        left, right = x // b, x % b
        for i in range(0, ROUNDS, 2):
            left = (left + self.turn(i, right, a)) % a
            right = (right + self.turn(i + 1, left, b)) % b
        return left * b + right

    def turn(self, i: int, other: np.ndarray, modulus: int) -> np.ndarray:
        """F_i of the side that stays, in {0, ..., modulus - 1}."""
        drawn = words(self.key.at(i).words, torch.from_numpy(other), 1)[:, 0].numpy()
        return drawn * modulus >> 32


def augmentation_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's augmentation; with a sample's number it names that sample's random numbers."""
    return Key(seed).of("augment").at(epoch).seed


# -- all samples in one permutation ---------------------------------------------------------------


def samples_of(update: int, n: int, batch: int, seed: int) -> tuple[int, np.ndarray]:
    """(epoch, samples [batch] by position) of a global batch. More than WHOLE samples are never an array."""
    epoch, place = divmod(update, n // batch)
    order = epoch_order(n, seed, epoch) if n <= WHOLE else Bijection(n, Key(seed).of("order").at(epoch))
    return epoch, order[place * batch : (place + 1) * batch]


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of all n samples in an epoch."""
    return permutation(n, Key(seed).of("order").at(epoch))


# -- streams --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Listed:
    """The samples of a stream in the order of reading: stretches of consecutive ones, a shard or a part of one each."""

    firsts: np.ndarray  # [k] the sample that a stretch begins with
    ends: np.ndarray  # [k] places up to its end

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, places: slice) -> np.ndarray:
        """int64 [places] the samples at some places."""
        at = np.arange(*places.indices(len(self)), dtype=np.int64)
        stretch = np.searchsorted(self.ends, at, side="right")
        return self.firsts[stretch] + at - np.concatenate([[0], self.ends])[stretch]

    def stretches(self, place: int) -> Iterator[tuple[int, int]]:
        """(first sample, how many) of each stretch from a place on."""
        for number in range(int(np.searchsorted(self.ends, place, side="right")), len(self.ends)):
            begin = int(self.ends[number - 1]) if number else 0
            skipped = max(0, place - begin)
            yield int(self.firsts[number]) + skipped, int(self.ends[number]) - begin - skipped


def stream_order(counts: Sequence[int] | np.ndarray, streams: int, seed: int, epoch: int, stream: int) -> Listed:
    """The samples of one stream in the order of reading, n // streams of them. Costs what there are shards.

    Shards in a random order of the epoch, their samples one after another; that list is cut into equal contiguous
    parts, one a stream. The n mod streams samples at its end are left out of the epoch.
    """
    sizes = np.asarray(counts)
    shards = permutation(len(sizes), Key(seed).of("shards").at(epoch))
    before = np.concatenate([[0], np.cumsum(sizes)])[shards]  # the first sample of each, in the epoch's order
    listed = np.cumsum(sizes[shards])  # places up to the end of each
    length = int(listed[-1]) // streams
    begin, end = stream * length, (stream + 1) * length
    starts = np.maximum(listed - sizes[shards], begin)
    ends = np.minimum(listed, end)
    mine = starts < ends
    return Listed((before + starts - (listed - sizes[shards]))[mine], ends[mine] - begin)


def window_order(size: int, seed: int, epoch: int, stream: int, window: int) -> np.ndarray:
    """The order in which a stream's window number `window`, of `size` samples, is given out."""
    return permutation(size, Key(seed).of("window").at(epoch).at(stream).at(window))


def windows(length: int, window: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """(number, first, end) of the windows of a stream of `length` samples, from the one that holds place `start` on."""
    for number in range(start // window, -(-length // window)):
        yield number, number * window, min((number + 1) * window, length)
