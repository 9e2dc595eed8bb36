"""Law 2 of the data: global batches depend on the seed and the update, on nothing else."""

from __future__ import annotations

import gzip
import shutil
import threading
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import CLASSES, SIZE, label_of, number_of

from robust_train.data.augment import CropFlip
from robust_train.data.order import stream_order, window_order
from robust_train.data.shards import Shards
from robust_train.data.streams import ahead
from robust_train.nouns import Batch, Place
from robust_train.read.errors import ConfigError, DataError


def shards(urls, cache, **fields) -> Shards:
    return Shards(tuple(urls), classes=CLASSES, size=SIZE, channels=1, cache=str(cache), **fields)


def global_batches(data: Shards, world: int, batch: int, seed: int, start: int, count: int) -> list[Batch]:
    """Global batches put together from those of all ranks."""
    ranks = [data.batches(Place(rank, world), batch, seed, start) for rank in range(world)]
    whole = []
    for _ in range(count):
        parts = [next(rank) for rank in ranks]
        assert {len(part) for part in parts} == {batch // world}
        whole.append(
            Batch(
                *(torch.cat([getattr(p, name) for p in parts]) for name in ("images", "targets", "position", "sample"))
            )
        )
    for rank in ranks:
        rank.close()
    return whole


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "targets", "position", "sample"))


@st.composite
def layouts(draw):
    """(shard sizes, which are packed, reader's fields, batch)."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    packed = draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    streams, window = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 9))
    share = draw(st.integers(1, max(1, sum(sizes) // streams // 2)))
    if sum(sizes) < streams * share:
        sizes, packed = [*sizes, streams * share], [*packed, False]
    fields = draw(st.sampled_from([{"reader": "indexed"}, {"reader": "streams", "streams": streams, "window": window}]))
    return sizes, packed, fields, 4 * streams * share if sum(sizes) >= 4 * streams * share else streams * share


@given(layouts(), st.integers(0, 2**40), st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_any_split_and_any_start_give_the_same_global_batches(write_shards, tmp_path_factory, layout, seed, start):
    sizes, packed, fields, batch = layout
    folder = tmp_path_factory.mktemp("layout")
    urls = write_shards(folder, sizes, [".tar.gz" if gz else ".tar" for gz in packed])
    data = shards(urls, folder / "cache", augment=CropFlip(pad=1), **fields)
    whole = global_batches(data, 1, batch, seed, 0, start + 3)
    worlds = [w for w in (1, 2, 4) if batch % w == 0 and fields.get("streams", w) % w == 0]
    for world in worlds:
        resumed = global_batches(data, world, batch, seed, start, 3)
        assert all(same(a, b) for a, b in zip(resumed, whole[start:], strict=True))
    for found in whole:
        assert found.position.tolist() == list(range(batch))
        assert found.targets.tolist() == [label_of(n) for n in found.sample.tolist()]
    shutil.rmtree(folder)


@pytest.mark.parametrize("fields", [{"reader": "indexed"}, {"reader": "streams", "streams": 4, "window": 5}])
def test_an_epoch_shows_every_image_once_up_to_the_remainder(write_shards, tmp_path, fields):
    data = shards(
        write_shards(tmp_path, [11, 3, 9, 14], [".tar", ".tar.gz", ".tar", ".tar.gz"]), tmp_path / "c", **fields
    )
    updates = 37 // 8 if fields["reader"] == "indexed" else 37 // 4 // 2
    met = [number_of(batch.images) for batch in islice(data.batches(Place(), 8, 1, 0), 2 * updates)]
    for epoch in (met[:updates], met[updates:]):
        numbers = [number for batch in epoch for number in batch]
        assert len(set(numbers)) == len(numbers) == 8 * updates
    assert met[:updates] != met[updates:]
    assert data.train_size() == 37


@pytest.mark.parametrize("fields", [{"reader": "indexed"}, {"reader": "streams", "streams": 2, "window": 4}])
def test_images_are_those_of_their_samples(write_shards, tmp_path, fields):
    data = shards(write_shards(tmp_path, [5, 300], ".tar.gz"), tmp_path / "c", **fields)
    for batch in islice(data.batches(Place(), 20, 0, 3), 16):
        assert number_of(batch.images) == batch.sample.tolist()
        assert batch.images.dtype == torch.uint8
        assert batch.images[:, 0, 1:].flatten(1).unique(dim=0).tolist() == [list(range(4, 16))]


def test_streams_give_out_their_windows_in_the_stated_order(write_shards, tmp_path):
    """Position p of update u is element u q + p mod q of stream p div q, windows of 4 drained one after another."""
    data = shards(write_shards(tmp_path, [6, 5, 9]), tmp_path / "c", reader="streams", streams=2, window=4)
    expected = []
    for stream in range(2):
        order = stream_order([6, 5, 9], 2, 7, 0, stream)
        held = [order[i : i + 4] for i in range(0, 10, 4)]
        expected.append(np.concatenate([w[window_order(len(w), 7, 0, stream, i)] for i, w in enumerate(held)]))
    for u, batch in enumerate(islice(data.batches(Place(), 6, 7, 0), 3)):
        assert batch.sample.tolist() == [*expected[0][3 * u : 3 * u + 3], *expected[1][3 * u : 3 * u + 3]]


def test_streams_read_each_shard_about_once_an_epoch(write_shards, tmp_path, monkeypatch):
    """Of 16 shards in 4 streams at most 3 are cut, and those are opened twice."""
    from robust_train.data.streams import Streams

    opened = []
    read = Streams.read
    monkeypatch.setattr(Streams, "read", lambda self, shard: opened.append(shard) or read(self, shard))
    data = shards(write_shards(tmp_path, [5] * 16), tmp_path / "c", reader="streams", streams=4, window=4)
    batches = [data._train._tasks(Place(rank, 2), 8, 0, 0) for rank in range(2)]
    for _ in range(10):  # 80 samples
        for rank in batches:
            next(rank)
    assert set(opened) == set(range(16))
    assert len(opened) <= 16 + 3


def test_plain_and_packed_shards_are_the_same_data(write_shards, tmp_path):
    plain, packed = write_shards(tmp_path / "a", [9, 8]), write_shards(tmp_path / "b", [9, 8], ".tar.gz")
    both = [shards(urls, tmp_path / "cache").batches(Place(), 5, 3, 2) for urls in (plain, packed)]
    assert all(same(a, b) for a, b in islice(zip(*both, strict=False), 7))


def test_shards_without_a_manifest_are_indexed_all_the_same(write_shards, tmp_path):
    known, unknown = write_shards(tmp_path / "a", [9, 8]), write_shards(tmp_path / "b", [9, 8], manifest=False)
    a, b = shards(known, tmp_path / "cache"), shards(unknown, tmp_path / "cache")
    assert same(next(a.batches(Place(), 5, 3, 2)), next(b.batches(Place(), 5, 3, 2)))
    assert a.checksums() == b.checksums()


def test_augmentation_is_the_samples_own_and_new_each_epoch(write_shards, tmp_path):
    """The same sample in an epoch looks the same whatever the batch size, and different in the next epoch."""
    data = shards(write_shards(tmp_path, [24]), tmp_path / "c", augment=CropFlip(pad=2))

    def shown(batch: int, epoch: int) -> dict[int, torch.Tensor]:
        found = islice(data.batches(Place(), batch, 0, epoch * (24 // batch)), 24 // batch)
        return {int(s): image for one in found for s, image in zip(one.sample, one.images, strict=True)}

    small, large, later = shown(4, 0), shown(12, 0), shown(12, 1)
    assert all(torch.equal(small[s], large[s]) for s in range(24))
    assert sum(torch.equal(later[s], large[s]) for s in range(24)) < 12


def test_validation_chunks_are_dealt_to_ranks_whole(write_shards, tmp_path):
    urls = write_shards(tmp_path, [9, 8], ".tar.gz")
    data = shards(urls, tmp_path / "c", validation=tuple(urls), augment=CropFlip())
    for world in (1, 2, 3):
        chunks = {}
        for rank in range(world):
            for i, batch in enumerate(data.validation_batches(Place(rank, world), 4, 15)):
                chunks[i * world + rank] = batch.sample.tolist()
                assert number_of(batch.images) == batch.sample.tolist() == batch.position.tolist()
        assert [chunks[i] for i in sorted(chunks)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]
    assert data.validation_size() == 17
    assert sum(len(batch) for batch in data.validation_batches(Place(), 4)) == 17


def test_evaluation_takes_the_listed_images_alone_in_the_lists_order(write_shards, tmp_path):
    """As RobustBench lists ImageNet's 5,000: folders and endings do not matter, and every name must be there."""
    urls = write_shards(tmp_path, [9, 8])
    listing = tmp_path / "images.txt"
    listing.write_text("val/s00011.JPEG\n\nval/s00002.JPEG\ns00016\n")
    data = shards(urls, tmp_path / "c", validation=tuple(urls), listed=str(listing))
    assert data.validation_size() == 3
    (batch,) = data.validation_batches(Place(), 8)
    assert number_of(batch.images) == batch.sample.tolist() == [11, 2, 16]
    assert batch.position.tolist() == [0, 1, 2]
    (second,) = data.validation_batches(Place(1, 2), 2)
    assert second.sample.tolist() == [16]
    listing.write_text("s00002\ns00099\n")
    with pytest.raises(DataError, match=r"lists 2 images, and 1 of them are not in .*'s00099' first"):
        shards(urls, tmp_path / "c", validation=tuple(urls), listed=str(listing)).validation_size()
    with pytest.raises(DataError, match=r"does not exist\. Write an image's name a line"):
        shards(urls, tmp_path / "c", validation=tuple(urls), listed="/nowhere.txt").validation_size()


def test_a_data_set_without_validation_has_no_validation_batches(write_shards, tmp_path):
    data = shards(write_shards(tmp_path, [4]), tmp_path / "c")
    assert list(data.validation_batches(Place(), 4)) == []


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"reader": "indexed"}, {"reader": "streams", "streams": 4, "window": 6}])
def test_worker_processes_change_nothing(write_shards, tmp_path, fields):
    data = shards(write_shards(tmp_path, [20, 13], ".tar.gz"), tmp_path / "c", augment=CropFlip(pad=1), **fields)
    here = list(islice(data.batches(Place(), 8, 5, 1), 9))
    there = replace(data, workers=2).batches(Place(), 8, 5, 1)
    assert all(same(a, b) for a, b in zip(here, islice(there, 9), strict=True))
    there.close()


def test_reading_leaves_the_global_generators_alone(write_shards, tmp_path):
    import random

    data = shards(write_shards(tmp_path, [8]), tmp_path / "c", augment=CropFlip())
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(islice(data.batches(Place(), 4, 0, 0), 3))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_pipes_and_addresses_are_read_as_files_are(write_shards, tmp_path):
    """A command, a packed command and a file:// address of the same shards."""
    plain = write_shards(tmp_path, [7, 6, 5])
    packed = tmp_path / "copy.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "part-001.tar").read_bytes()))
    mixed = [f"pipe:cat {plain[0]}", f"pipe:cat {packed}", f"file://{plain[2]}"]
    a, b = shards(plain, tmp_path / "c"), shards(mixed, tmp_path / "c")
    assert same(next(a.batches(Place(), 18, 0, 0)), next(b.batches(Place(), 18, 0, 0)))


def test_a_world_size_that_does_not_divide_the_streams_is_refused_with_those_that_do(write_shards, tmp_path):
    data = shards(write_shards(tmp_path, [40]), tmp_path / "c", reader="streams", streams=8)
    with pytest.raises(
        ConfigError, match=r"streams=8 cannot be dealt to 3 ranks. Use 1, 2, 4, 8 ranks, or data.streams=6"
    ):
        next(data.batches(Place(0, 3), 24, 0, 0))


def test_a_batch_that_does_not_divide_is_refused(write_shards, tmp_path):
    urls = write_shards(tmp_path, [40])
    with pytest.raises(ConfigError, match=r"batch=10 cannot be dealt to 4 ranks. Use 1, 2, 5, 10 ranks"):
        next(shards(urls, tmp_path / "c").batches(Place(0, 4), 10, 0, 0))
    with pytest.raises(ConfigError, match="batch=10 cannot be taken equally from streams=4"):
        next(shards(urls, tmp_path / "c", reader="streams", streams=4).batches(Place(), 10, 0, 0))
    with pytest.raises(ConfigError, match="batch=41 is larger than the data set, which has 40 samples"):
        next(shards(urls, tmp_path / "c").batches(Place(), 41, 0, 0))


def test_a_reader_whose_own_thread_collects_it_ends_quietly():
    """Any thread may collect garbage; one that joined itself would raise where nobody hears."""
    held, dropped, threads = {}, threading.Event(), []

    def items():
        threads.append(threading.current_thread())
        yield 1
        dropped.wait()
        held.clear()
        yield 2

    held["it"] = ahead(items)
    assert next(held["it"]) == 1
    dropped.set()
    threads[0].join(timeout=10)
    assert not threads[0].is_alive()


def test_a_reader_ends_with_who_asked_for_it(write_shards, tmp_path):
    urls = write_shards(tmp_path, [9, 9])
    before = threading.active_count()
    batches = shards(urls, tmp_path / "c", reader="streams", streams=2).batches(Place(), 4, 0, 0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
