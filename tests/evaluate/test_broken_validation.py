"""Samples that cannot be read are not judged: nothing stands in for them, and no other verdict is another for it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image

from robust_train.attacks.pgd import PGD
from robust_train.data.shards import Shards
from robust_train.data.write import sample, write_shard
from robust_train.engines.plain import PlainEngine
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.transferability import Transferability
from robust_train.judging import Judge
from robust_train.keyed import Key
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.nouns import Batch, Place
from robust_train.objectives.plain import Plain
from robust_train.threats.linf import Linf
from tests.evaluate.linear import judged
from tests.toys import CLASSES, SIDE, pictures, toy_run

COUNT, CHUNK = 24, 4
BROKEN = (2, 8, 9, 10, 11, 23)  # of them chunk 2 altogether
WHOLE = [number for number in range(COUNT) if number not in BROKEN]
ATTACK = PGD(Linf(0.1), 2, 0.05)


@pytest.fixture
def sets(tmp_path) -> tuple[Shards, Shards]:
    """The toys' pictures as a validation shard, and the same with some that cannot be read."""
    images, targets = pictures(COUNT)

    def written(name: str, broken: tuple[int, ...]) -> Shards:
        def samples():
            for number in range(COUNT):
                file = io.BytesIO()
                Image.fromarray(images[number, 0].numpy()).save(file, "png")
                torn = file.getvalue()[:40] if number in broken else file.getvalue()
                yield sample(f"{number:04d}", "png", torn, int(targets[number]))

        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "part.tar", samples())
        url, cache = str(tmp_path / name / "part.tar"), str(tmp_path / name / "cache")
        return Shards(url, CLASSES, SIDE, url, channels=1, cache=cache, missing=len(broken))

    return written("whole", ()), written("torn", BROKEN)


def sound(data: Shards) -> Iterator[Batch]:
    return filter(len, data.validation_batches(Place(), CHUNK))


def network_of(seed: int) -> Network:
    torch.manual_seed(seed)
    return Network(SmallCNN((8,), (2,)).build(CLASSES, (1, SIDE, SIDE)), CLASSES).eval()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_chunk_keeps_its_number_and_the_others_their_places(sets, world, workers):
    data, found = replace(sets[1], workers=workers), {}
    for rank in range(world):
        place = Place(rank, world)
        for number, batch in place.numbered(data.validation_batches(place, CHUNK)):
            found[number] = batch.position.tolist()
            assert torch.equal(batch.position, batch.sample)
            assert batch.broken is None
    assert found == {n: [at for at in range(n * CHUNK, (n + 1) * CHUNK) if at in WHOLE] for n in range(COUNT // CHUNK)}


def test_validation_counts_what_could_be_read(sets, tmp_path):
    """A run's own validation: of a network that is wrong on some, the mean over the images that are there."""
    run = replace(toy_run(Plain(), tmp_path, batch=8), data=sets[1])
    with PlainEngine(run) as engine:
        found = Judge(run, engine).evaluate(ATTACK, None)
        images, targets = pictures(COUNT)
        right = engine.module.eval()(images[WHOLE] / 255).argmax(1) == targets[WHOLE]
    assert found["validation/images"] == len(WHOLE)
    assert found["accuracy/clean"] == pytest.approx(right.double().mean().item())


def test_a_verdict_is_the_same_whether_another_image_is_broken_or_not(sets):
    network, told = network_of(0), []
    for data in sets:
        found = {}
        for batch in sound(data):
            batch = batch.to("cpu")
            clean, robust, points = verdicts(network, batch, ATTACK, Key(5))
            found |= {int(s): (clean[i], robust[i], points[i]) for i, s in enumerate(batch.sample)}
        told.append(found)
    whole, torn = told
    assert list(torn) == WHOLE
    for number, (clean, robust, points) in torn.items():
        assert (clean, robust) == whole[number][:2]
        torch.testing.assert_close(points, whole[number][2], rtol=0, atol=1e-6)


def test_evaluation_judges_what_could_be_read(sets):
    asked = Robustness(threats=(Linf(0.1),), attack="pgd", steps=2, chunk=CHUNK)
    whole, torn = (judged(asked, network_of(0), data, 1)[0] for data in sets)
    assert torn.sample.tolist() == WHOLE
    for name, column in torn.columns.items():
        assert torch.equal(column.right, whole.columns[name].right[WHOLE]), name


def test_transfer_tries_what_could_be_read(sets):
    networks = {"one": network_of(0), "two": network_of(1)}
    whole, torn = (Transferability(ATTACK, chunk=CHUNK)(networks, data) for data in sets)
    assert [figure.images for figure in whole.clean] == [COUNT, COUNT]
    assert [figure.images for figure in torn.clean] == [len(WHOLE), len(WHOLE)]
    for data, matrix in zip(sets, (whole, torn), strict=True):
        rights = sum(int(verdicts(networks["one"], batch.to("cpu"), None, Key(0))[0].sum()) for batch in sound(data))
        assert matrix.clean[0].right == rights
