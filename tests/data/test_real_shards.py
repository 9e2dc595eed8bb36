"""The real shards: CIFAR-10, Tiny ImageNet, ImageNet samples, as they lie there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from robust_train.data.augment import CropFlip, Inception
from robust_train.data.shards import Shards
from robust_train.nouns import Batch, Place

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
