"""The real shards: CIFAR-10, Tiny ImageNet, ImageNet samples, as they lie there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from robust_train.data.augment import CropFlip, Inception
from robust_train.data.beside import Beside
from robust_train.data.manifest import Entry, split_of
from robust_train.data.shards import Shards
from robust_train.disk import checksum, write_json
from robust_train.nouns import Batch, Extra, Place

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def test_cifar_10_is_complete_and_its_labels_are_balanced(real, cache):
    data = Shards(str(real / "cifar10/cifar10-test-*.tar.gz"), 10, 32, cache=cache, augment=CropFlip())
    data.check()
    assert data.train_size() == 10_000
    first = next(data.batches(Place(), 256, 0, 0))
    assert first.images.shape == (256, 3, 32, 32)
    labels = torch.cat([batch.targets for batch in islice(data.batches(Place(), 2000, 0, 0), 5)])
    assert torch.bincount(labels, minlength=10).tolist() == [1000] * 10


def test_lossless_and_lossy_shards_hold_the_same_pictures(real, cache):
    """Keys are CIFAR's indices: JPEG's loss is about 30 dB (measured: 30.5 in the mean)."""
    urls = [str(real / f"cifar10/cifar10-{name}.tar.gz") for name in ("lossless-test-000000", "test-000000")]
    sets = [Shards(url, 10, 32, cache=cache) for url in urls]
    keyed = []
    for data in sets:
        source = data._train
        wanted = {source.numbered(0, i).key: i for i in range(600)}
        keyed.append((next(data_batches(data, 600)), wanted))
    shared = keyed[0][1].keys() & keyed[1][1].keys()
    assert len(shared) > 20
    for key in shared:
        exact, lossy = (batch.images[numbers[key]].double() for batch, numbers in keyed)
        error = (exact - lossy).square().mean()
        assert 20 < 10 * torch.log10(255**2 / error) < 45
        labels = {int(batch.targets[numbers[key]]) for batch, numbers in keyed}
        assert len(labels) == 1


@pytest.mark.parametrize("reader", ["indexed", "streams"])
def test_a_task_comes_with_macaque_v4s_answers_to_other_pictures(real, cache, tmp_path, reader):
    """Recording 201025: 1,200 pictures without labels, spike counts of 89 neurons, those of the file itself."""
    import io
    import tarfile

    import numpy as np

    (lies,) = real.glob("neural/v4_201025-*.tar.gz")
    path = Path(shutil.copy(lies, tmp_path))  # the manifest there is of recordings, not of shards
    entry = Entry(path.name, 1200, path.stat().st_size, checksum(path))
    write_json(tmp_path / "manifest.json", {"splits": {"train": split_of([entry])}})
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".resp.npy")}  # type: ignore[union-attr]
    said = [np.load(io.BytesIO(file)) for file in files.values()]  # in the order of the shard
    task = Shards(str(real / "cifar10/cifar10-test-*.tar.gz"), 10, 32, cache=cache)
    v4 = Shards(str(path), 1, 32, labelled=False, extra={"resp": Extra((89,))}, cache=cache, reader=reader, streams=4)
    data = Beside(task, v4)
    data.check()
    seen = set()
    for batch in islice(data.batches(Place(), 300, 0), 4):
        assert batch.beside is not None
        assert batch.images.shape == batch.beside.images.shape == (300, 3, 32, 32)
        for sample, resp in zip(batch.beside.sample.tolist(), batch.beside.extra["resp"].numpy(), strict=True):
            assert np.array_equal(resp, said[sample])
            seen.add(sample)
    assert len(seen) == len(said) == 1200


def data_batches(data: Shards, count: int) -> Iterator[Batch]:
    """Images in the order of the shard."""
    return replace(data, validation=data.train).validation_batches(Place(), count)


def test_tiny_imagenet_is_colour_throughout_and_its_checksums_are_its_manifests(real, cache):
    """152 of its files are grey; a batch has three channels all the same."""
    folder = real / "tinyimagenet"
    url = str(folder / "tinyimagenet-val-*.tar.gz")
    data = Shards(url, 100, 64, url, cache=cache)
    data.check()
    said = json.loads((folder / "manifest.json").read_text())["splits"]["val"]["shards"]
    assert set(data.checksums().values()) == {shard["sha256"] for shard in said}
    images = torch.cat([batch.images for batch in data.validation_batches(Place(), 500)])
    assert images.shape == (1500, 3, 64, 64)
    grey = (images[:, 0] == images[:, 1]).flatten(1).all(1) & (images[:, 1] == images[:, 2]).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 100


def test_imagenet_samples_are_cropped_to_224(real, cache):
    url = str(real / "imagenet-samples")
    data = Shards(url, 1000, 224, url, augment=Inception(), cache=cache)
    data.check()
    (chunk,) = data.validation_batches(Place(), 32, 32)
    assert chunk.images.shape == (32, 3, 224, 224)
    assert (chunk.targets % 5 == 0).all()
    batch = next(data.batches(Place(), 16, 0, 0))
    assert batch.images.shape == (16, 3, 224, 224)
    assert 60 < batch.images.float().mean() < 180


@pytest.mark.parametrize("fields", [{"reader": "indexed"}, {"reader": "streams", "streams": 4, "window": 100}])
def test_two_ranks_share_what_one_has(real, cache, fields):
    urls = str(real / "cifar10/cifar10-lossless-train-*.tar.gz")
    data = Shards(urls, 10, 32, augment=CropFlip(), cache=cache, **fields)
    assert data.train_size() == 8068
    whole = list(islice(data.batches(Place(), 32, 1, 3), 3))
    halves = [list(islice(data.batches(Place(rank, 2), 32, 1, 3), 3)) for rank in range(2)]
    for update in range(3):
        assert torch.equal(torch.cat([halves[0][update].images, halves[1][update].images]), whole[update].images)
