"""The order of samples is a pure function of seed and update."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_train.data import order as orders_of
from robust_train.data.order import (
    Bijection,
    augmentation_seed,
    permutation,
    samples_of,
    stream_order,
    window_order,
    windows,
)
from robust_train.keyed import Key

seeds = st.integers(0, 2**63 - 1)


@given(st.integers(1, 200), st.integers(1, 40), seeds, st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_an_epoch_holds_every_sample_once_up_to_its_remainder(n, batch, seed, epoch):
    batch = min(batch, n)
    updates = n // batch
    met = [samples_of(update, n, batch, seed) for update in range(epoch * updates, (epoch + 1) * updates)]
    assert {found for found, _ in met} == {epoch}
    samples = np.concatenate([ids for _, ids in met])
    assert len(samples) == n - n % batch
    assert len(set(samples.tolist())) == len(samples)
    assert set(samples.tolist()) <= set(range(n))


def test_the_remainder_of_an_epoch_rotates():
    left_out = []
    for epoch in range(20):
        samples = np.concatenate([samples_of(epoch * 3 + i, 10, 3, seed=5)[1] for i in range(3)])
        left_out += set(range(10)) - set(samples.tolist())
    assert len(left_out) == 20
    assert len(set(left_out)) > 5


def test_orders_of_small_sets_are_equally_likely():
    """All 6 permutations of 3: each 1/6, tested at 5 standard deviations of 1,200 draws."""
    drawn = [tuple(permutation(3, Key(seed)).tolist()) for seed in range(1200)]
    counts = np.array([drawn.count(order) for order in set(drawn)])
    assert len(counts) == 6
    assert np.abs(counts - 200).max() < 5 * (1200 / 6 * 5 / 6) ** 0.5


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(samples_of(u, 50, 50, seed)[1].tolist()) for seed in range(3) for u in range(3)}
    assert len(orders) == 9
    assert len({augmentation_seed(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 6), seeds, st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_streams_share_all_samples_equally_up_to_the_remainder(counts, streams, seed, epoch):
    total = sum(counts)
    parts = [stream_order(counts, streams, seed, epoch, stream)[:] for stream in range(streams)]
    assert {len(part) for part in parts} == {total // streams}
    listed = np.concatenate(parts).tolist()
    assert len(set(listed)) == len(listed) == total - total % streams


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 6), seeds)
@settings(deadline=None, max_examples=30)
def test_a_stream_reads_each_of_its_shards_in_one_go(counts, streams, seed):
    shard = np.repeat(np.arange(len(counts)), counts)
    for stream in range(streams):
        order = stream_order(counts, streams, seed, 0, stream)[:]
        jumps = np.flatnonzero(np.diff(order) != 1)
        # it leaves a shard only at the shard's end, and enters the next at its beginning
        ends, starts = set((np.cumsum(counts) - 1).tolist()), set((np.cumsum([0, *counts[:-1]])).tolist())
        assert all(int(order[j]) in ends and int(order[j + 1]) in starts for j in jumps)
        assert len(set(shard[order].tolist())) <= len(jumps) + 1 + len(counts)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 6), seeds, st.integers(0, 240))
@settings(deadline=None, max_examples=30)
def test_a_stream_is_a_part_of_the_shards_samples_one_after_another(counts, streams, seed, place):
    """Against the list of all samples, written down: every place, and what is read from any of them on."""
    starts = np.cumsum([0, *counts])
    shards = permutation(len(counts), Key(seed).of("shards").at(2))
    listed = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in shards])
    length = len(listed) // streams
    for stream in range(streams):
        found = stream_order(counts, streams, seed, 2, stream)
        mine = listed[stream * length : (stream + 1) * length]
        assert len(found) == length
        assert found[:].tolist() == mine.tolist()
        assert found[place // 3 : place].tolist() == mine[place // 3 : place].tolist()
        read = [sample for first, many in found.stretches(place) for sample in range(first, first + many)]
        assert read == mine[place:].tolist()


@given(st.integers(1, 3000), seeds)
@settings(deadline=None, max_examples=30)
def test_a_bijection_is_a_permutation(n, seed):
    """Every place written down, at any number of samples."""
    order = Bijection(n, Key(seed))
    assert sorted(order[:].tolist()) == list(range(n))
    assert order[n // 3 : n // 2].tolist() == order[:].tolist()[n // 3 : n // 2]


def test_a_bijection_of_a_thousand_million_is_undone_exactly():
    """Each round is undone by the same words: what 10,000 samples come from goes back to them, and nothing collides."""
    order = Bijection(10**9, Key(3))
    a, b = order.sides
    assert 10**9 <= a * b < 10**9 * 1.0001

    def undone(y):
        left, right = y // b, y % b
        for i in range(orders_of.ROUNDS - 2, -1, -2):
            right = (right - order.turn(i + 1, left, b)) % b
            left = (left - order.turn(i, right, a)) % a
        return left * b + right

    places = slice(987_654_321, 987_664_321)
    found = order[places]
    assert found.min() >= 0
    assert found.max() < 10**9
    back = undone(found)
    while (outside := back >= 10**9).any():
        back[outside] = undone(back[outside])
    assert back.tolist() == list(range(places.start, places.stop))


def test_a_bijections_order_is_spread_and_has_no_memory():
    """Over 40,000 places: uniform in 16 cells (chi square, 15 degrees: below 45), neighbours uncorrelated (5 sigma)."""
    found = Bijection(2**24 + 1, Key(1).of("order").at(0))[1_000_000:1_040_000] / (2**24 + 1)
    cells = np.histogram(found, 16, (0, 1))[0]
    assert ((cells - 2500) ** 2 / 2500).sum() < 45
    for lag in (1, 2, 64, 4096):
        assert abs(np.corrcoef(found[lag:], found[:-lag])[0, 1]) < 5 * len(found) ** -0.5
    other = Bijection(2**24 + 1, Key(1).of("order").at(1))[1_000_000:1_040_000] / (2**24 + 1)
    assert abs(np.corrcoef(found, other)[0, 1]) < 5 * len(found) ** -0.5


def test_orders_up_to_the_stated_size_are_what_they_were_and_above_it_nothing_is_as_long_as_the_samples(monkeypatch):
    n, batch, seed = 1000, 10, 4
    drawn = permutation(n, Key(seed).of("order").at(0))
    assert samples_of(7, n, batch, seed)[1].tolist() == drawn[70:80].tolist()
    assert orders_of.WHOLE > 15_000_000, "ImageNet-21k's order stays what it was"
    monkeypatch.setattr(orders_of, "permutation", None)
    epoch, samples = samples_of(3_906_250 * 2 + 5, 10**9, 256, seed)
    assert epoch == 2
    assert samples.tolist() == Bijection(10**9, Key(seed).of("order").at(2))[5 * 256 : 6 * 256].tolist()


@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 99))
def test_windows_tile_a_stream_and_begin_anywhere(length, window, start):
    start = min(start, length - 1)
    tiles = list(windows(length, window))
    assert [row for _, first, end in tiles for row in range(first, end)] == list(range(length))
    assert list(windows(length, window, start)) == [tile for tile in tiles if tile[2] > start]


def test_a_window_is_shuffled_within_itself():
    orders = {tuple(window_order(12, 0, epoch, stream, w)) for epoch in (0, 1) for stream in (0, 1) for w in (0, 1)}
    assert len(orders) == 8
    assert all(sorted(order) == list(range(12)) for order in orders)
