"""What samples carry beside image and label: the same by any reader, workers, ranks, and after a resume."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numbered import CLASSES, SIZE, label_of, number_of, picture

from robust_train.attacks.pgd import PGD
from robust_train.check import check
from robust_train.data.augment import CropFlip
from robust_train.data.beside import Beside
from robust_train.data.mix import Mixup
from robust_train.data.shards import Shards
from robust_train.data.write import sample, write_shard
from robust_train.disk import write_json
from robust_train.evaluate.accuracy import verdicts
from robust_train.evaluate.robustness import Robustness
from robust_train.evaluate.transferability import Transferability
from robust_train.forecast import made_up
from robust_train.keyed import Key
from robust_train.nouns import PIXELS, Batch, Extra, Place, Scale
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.read.errors import ConfigError, DataError
from robust_train.settings.validate import Validate
from robust_train.threats.linf import Linf
from tests.toys import ToyImages, toy_run

COUNT = 24
EXTRA = {"resp": Extra((3,)), "other": Extra((), whole=True)}
READERS = [
    {"reader": "indexed"},
    {"reader": "streams", "streams": 4, "window": 3},
    pytest.param({"reader": "indexed", "workers": 2}, marks=pytest.mark.slow),
    pytest.param({"reader": "streams", "streams": 4, "window": 3, "workers": 1}, marks=pytest.mark.slow),
]


def npy(value: object, kind: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value, dtype=kind))
    return file.getvalue()


def responses(number: int) -> list[float]:
    return [number + 0.5, 2.0 * number, -1.0]


def written(folder, changed: dict[int, dict] | None = None, suffix: str = ".tar", first: int = 0) -> str:
    """Two shards of numbered samples with responses and an index into other images, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)

    def one(number: int):
        made = sample(f"s{number:05d}", "png", picture(number), label_of(number))
        made |= {"resp.npy": npy(responses(number), "f8"), "other.npy": npy(COUNT - number, "i4")}
        return {k: v for k, v in (made | (changed or {}).get(number, {})).items() if v is not None}

    cuts = [range(first, first + 10), range(first + 10, first + COUNT)]
    entries = [write_shard(folder / f"{i}{suffix}", map(one, cut)) for i, cut in enumerate(cuts)]
    shards = {"samples": COUNT, "shards": [vars(entry) for entry in entries]}
    write_json(folder / "manifest.json", {"splits": {"train": shards}})
    return str(folder)


def shards(folder, **fields) -> Shards:
    said = {"classes": CLASSES, "size": SIZE, "channels": 1, "cache": f"{folder}/cache", "extra": EXTRA, **fields}
    return Shards(folder, **said)  # type: ignore[arg-type]


def rows(data, world: int, count: int, start: int = 0, batch: int = 8) -> list[Batch]:
    """The rows of updates `start` to `count`, by position."""
    ranks = [data.batches(Place(rank, world), batch, 3, start) for rank in range(world)]
    found = []
    for _ in range(start, count):
        for part in map(next, ranks):
            found += [part[row : row + 1] for row in range(len(part))]
    for rank in ranks:
        rank.close()
    return found


def used(data: Shards) -> None:
    """What a job does before and while it trains."""
    data.check()
    rows(data, 1, 3)


def same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.position, b.position)
        assert torch.equal(a.sample, b.sample)
        assert a.extra.keys() == b.extra.keys()
        assert all(torch.equal(value, b.extra[name]) for name, value in a.extra.items())
        assert len(a.views) == len(b.views)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        if a.beside is not None:
            same([a.beside], [b.beside])  # type: ignore[list-item]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("fields", READERS)
def test_what_a_sample_carries_comes_with_it(tmp_path, fields, suffix):
    data = shards(written(tmp_path, suffix=suffix), **fields)
    data.check()
    for row in rows(data, 1, 4):
        (number,) = number_of(row.images)
        assert row.extra["resp"].dtype == torch.float32
        assert row.extra["resp"].tolist() == [responses(number)]
        assert row.extra["other"].dtype == torch.int64
        assert row.extra["other"].tolist() == [COUNT - number]


@pytest.mark.parametrize("fields", READERS)
def test_ranks_and_resumes_carry_what_one_process_does(tmp_path, fields):
    data = shards(written(tmp_path), views=2, augment=CropFlip(pad=1), **fields)
    alone = rows(data, 1, 7)
    same(rows(data, 2, 7), alone)
    same(rows(data, 4, 7), alone)
    same(rows(data, 2, 7, start=4), alone[4 * 8 :])


@pytest.mark.parametrize("fields", READERS[:2])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resp.npy": None}, r"has no \.resp\.npy entry"),
        ({"resp.npy": npy([1.0, 2.0], "f4")}, r"has a \.resp\.npy that holds float32 \[2\], not numbers \[3\]"),
        ({"other.npy": npy(1.5, "f4")}, r"has a \.other\.npy that holds float32 \[\], not whole numbers \[\]"),
        ({"resp.npy": b"no array"}, r"has a \.resp\.npy that cannot be read"),
    ],
)
def test_a_sample_that_carries_something_else_is_broken(tmp_path, fields, change, said):
    folder = written(tmp_path, {5: change})
    with pytest.raises(DataError, match=rf"sample s00005 {said}.*data.missing=1"):
        used(shards(folder, **fields))
    stood = {int(row.sample): row for row in rows(shards(folder, missing=1, **fields), 1, 3)}
    assert stood[5].broken == 1
    assert number_of(stood[5].images) == [6]
    assert stood[5].extra["resp"].tolist() == [responses(6)]


def test_validation_reads_images_and_labels_alone(tmp_path):
    bare = {number: {"resp.npy": None, "other.npy": None} for number in range(COUNT)}
    folder = written(tmp_path / "bare", bare)
    data = replace(shards(written(tmp_path / "full"), views=2), validation=folder)
    data.check()
    (batch,) = data.validation_batches(Place(), COUNT)
    assert (len(batch), batch.extra, batch.views) == (COUNT, {}, ())


def test_the_first_view_is_the_only_one_of_one_and_each_is_drawn_alone(tmp_path):
    one = shards(written(tmp_path), augment=CropFlip(pad=2))
    three = replace(one, views=3)
    for a, b in zip(rows(one, 1, 3), rows(three, 1, 3), strict=True):
        assert torch.equal(a.images, b.images)
        assert len(b.views) == 2
    found = rows(three, 1, 3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pairs = [((row.images, *row.views)[first], (row.images, *row.views)[second]) for row in found]
        assert sum(torch.equal(a, b) for a, b in pairs) < len(pairs) / 3


def test_stored_values_become_floats_by_the_scale_of_their_set():
    stored, row = torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.tensor([0])
    pixels = Batch(stored, row, row, row, {"resp": torch.ones(1, 2)}, (stored,)).to("cpu", torch.float64)
    assert torch.equal(pixels.images, stored.double() / 255)
    assert torch.equal(pixels.views[0], pixels.images)
    assert pixels.extra["resp"].dtype == torch.float64
    assert torch.equal(pixels.to("cpu").images, pixels.images)  # floats are what a network sees already
    counts = Batch(stored, row, row, row, scale=Scale(1, 0, 255)).to("cpu")
    assert counts.images.tolist() == [[0, 51, 255]]
    assert (PIXELS.boxed, counts.scale.boxed, Scale(1).boxed) == (True, False, True)


@pytest.mark.parametrize("fields", READERS)
def test_another_sets_samples_come_along(tmp_path, fields):
    """The other set has its own order and epochs; its rows are cut and dealt as the task's are."""
    task = shards(written(tmp_path / "task"), extra={})
    other = shards(written(tmp_path / "other", {n: {"cls": None} for n in range(100, 200)}, first=100), classes=1)
    data = Beside(task, replace(other, labelled=False, **fields))
    data.prepare()
    data.check()
    alone = rows(data, 1, 7)
    for row in alone:
        assert row.beside is not None
        (number,) = number_of(row.beside.images)
        assert number >= 100
        assert row.beside.extra["resp"].tolist() == [responses(number)]
        assert row.beside.targets.tolist() == [0]
        assert torch.equal(row.beside.position, row.position)
    assert [int(r.sample) for r in alone[:8]] != [int(r.beside.sample) for r in alone[:8]]  # type: ignore[union-attr]
    assert {int(r.beside.sample) for r in alone} == set(range(COUNT))  # type: ignore[union-attr]
    same(rows(data, 2, 7), alone)
    same(rows(data, 1, 7, start=3), alone[3 * 8 :])
    whole = next(iter(data.batches(Place(), 8, 3))).to("cpu")
    assert whole.beside is not None
    assert whole[2:5].beside.sample.tolist() == whole.beside.sample[2:5].tolist()  # type: ignore[union-attr]
    assert whole.beside.images.max() <= 1
    assert {*data.checksums()} == {"0.tar", "1.tar", "beside/0.tar", "beside/1.tar"}


def test_a_mixing_mixes_all_views_alike_and_a_run_refuses_what_it_does_not_carry():
    images, at = torch.rand(8, 1, 4, 4), torch.arange(8)
    batch = Batch(images, at % 3, at, at, views=(1 - images,))
    for mixing in (Mixup(0.8, group=4), Mixup(0, 1.0, group=4), Mixup(0.8, 1.0, group=4)):
        mixed = mixing(batch, Key(1), 3)
        torch.testing.assert_close(mixed.views[0], 1 - mixed.images)
        assert torch.equal(mixed.images, mixing(replace(batch, views=()), Key(1), 3).images)
    assert Mixup.carries == {"views"}


@pytest.mark.parametrize("name", ["extra", "beside"])
def test_a_run_refuses_to_mix_what_its_mixing_does_not_carry(name):
    run = toy_run(Plain(), mixing=Mixup(group=4))
    at = torch.arange(8)
    batch = Batch(torch.rand(8, 1, 8, 8), at % 5, at, at)
    full = replace(batch, **{name: {"resp": torch.ones(8, 3)} if name == "extra" else batch})
    assert len(run.mix(batch, Key(0).rows(at)))
    assert len(run.mix(replace(batch, views=(batch.images,)), Key(0).rows(at)).views) == 1
    with pytest.raises(ConfigError, match=rf"mixing.use=mixup cannot say what becomes of {name} .*mixing=null"):
        run.mix(full, Key(0).rows(at))


@dataclass(frozen=True)
class Counts(ToyImages):
    """Counts of spikes, as they are."""

    scale = Scale(1, 0, 40)


@dataclass(frozen=True)
class Scaled(Counts):
    """One chunk."""

    batch: Batch | None = None

    def validation_size(self) -> int:
        return 4

    def validation_batches(self, place: Place, chunk: int, limit: int | None = None) -> Iterator[Batch]:
        yield self.batch  # type: ignore[misc]


def test_attacks_refuse_values_outside_their_box():
    attack = PGD(Linf(0.1), 2, 0.05)
    said = r"pgd keeps to values in \[0, 1\], but this data set's lie in \[0, 40\]"
    for changes in ({}, {"validate": Validate(every=1, attack=attack)}):
        objective = Plain() if changes else Madry(attack)
        with pytest.raises(ConfigError, match=said):
            check(replace(toy_run(objective), data=Counts(), **changes), 1)
    at = torch.arange(4)
    batch = Batch(torch.rand(4, 1, 8, 8), at, at, at, scale=Counts().scale)
    with pytest.raises(ConfigError, match=said):
        verdicts(torch.nn.Flatten(), batch, attack, Key(0))
    verdicts(torch.nn.Flatten(), batch, None, Key(0))
    counted = Robustness((Linf(0.1),))
    with pytest.raises(ConfigError, match=said):
        counted(torch.nn.Flatten(), Scaled(batch=batch), Key(0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        Transferability(attack)({"a": torch.nn.Flatten(), "b": torch.nn.Flatten()}, Scaled(batch=batch))  # type: ignore[arg-type]


def test_made_up_samples_have_all_that_those_of_the_data_have(tmp_path):
    """Shape, range, what they carry, views, and the other set's: what a rehearsal runs on is what an update runs on."""
    task = replace(shards(written(tmp_path / "task")), views=3)
    data = Beside(task, replace(shards(written(tmp_path / "other")), extra={"resp": EXTRA["resp"]}))
    real = next(iter(data.batches(Place(), 8, 0))).to("cpu", torch.float64)
    made = made_up(data, 8, torch.device("cpu"), torch.float64)

    def described(batch: Batch):
        tensors = {"images": batch.images, "targets": batch.targets, **batch.extra, **dict(enumerate(batch.views))}
        tensors |= {} if batch.beside is None else {f"beside/{k}": v for k, v in described(batch.beside)[1].items()}
        return batch.scale, {str(name): t for name, t in tensors.items()}

    def kinds(batch: Batch):
        return {name: (tensor.shape, tensor.dtype) for name, tensor in described(batch)[1].items()}

    assert kinds(made) == kinds(real)
    assert not torch.equal(made.views[0], made.views[1])
    counts = made_up(Counts(), 8, torch.device("cpu"), torch.float32)
    assert counts.scale == Counts().scale
    assert counts.images.min() == 0
    assert 20 < counts.images.max() <= 40


@pytest.mark.parametrize(("stored", "seen"), [(torch.float16, torch.float32), (torch.float32, torch.float64)])
def test_values_stored_as_floats_come_in_the_precision_asked_for(stored: torch.dtype, seen: torch.dtype) -> None:
    assert PIXELS(torch.full((2, 3), 0.5, dtype=stored), seen).dtype == seen
