"""Which sample stands at which position of which global batch: pure functions of the seed and the update.

Ranks, workers and accumulation do not enter. n samples give floor(n / batch) updates an epoch; the n mod batch last of
an epoch's order are left out of it. The next epoch has another order and leaves out others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from robust_train.keyed import Key, bits


def permutation(n: int, key: Key) -> np.ndarray:
    """A random order of 0, ..., n - 1, int64 [n]: that of n 63-bit random numbers. Library versions do not enter.

    1.28 million take half a second of one core, once an epoch.
    """
    high, low = bits(key.rows(None), (n, 2)).unbind(1)
    return np.argsort(((high << 31) | (low >> 1)).numpy(), kind="stable")


def augmentation_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's augmentation; with a sample's number it names that sample's random numbers."""
    return Key(seed).of("augment").at(epoch).seed


# -- all samples in one permutation ---------------------------------------------------------------


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of all n samples in an epoch."""
    return permutation(n, Key(seed).of("order").at(epoch))


def samples_of(update: int, n: int, batch: int, seed: int) -> tuple[int, np.ndarray]:
    """(epoch, samples [batch] by position) of a global batch."""
    epoch, place = divmod(update, n // batch)
    return epoch, epoch_order(n, seed, epoch)[place * batch : (place + 1) * batch]


# -- streams --------------------------------------------------------------------------------------


def stream_order(counts: Sequence[int], streams: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """The samples of one stream in the order of reading, int64 [n // streams].

    Shards in a random order of the epoch, their samples one after another; that list is cut into equal contiguous
    parts, one a stream. The n mod streams samples at its end are left out of the epoch.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    shards = permutation(len(counts), Key(seed).of("shards").at(epoch))
    listed = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
    length = len(listed) // streams
    return listed[stream * length : (stream + 1) * length]


def window_order(size: int, seed: int, epoch: int, stream: int, window: int) -> np.ndarray:
    """The order in which a stream's window number `window`, of `size` samples, is given out."""
    return permutation(size, Key(seed).of("window").at(epoch).at(stream).at(window))


def windows(length: int, window: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """(number, first, end) of the windows of a stream of `length` samples, from the one that holds place `start` on."""
    for number in range(start // window, -(-length // window)):
        yield number, number * window, min((number + 1) * window, length)
