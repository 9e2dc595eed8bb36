"""Data sets of shifts: which class an image has, which logits are compared, and which images are judged at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_train.data.decode import centred
from robust_train.data.imagenet import LabelFiles
from robust_train.data.shift import Shift
from robust_train.data.shifts import SHIFTS, ImageNet, shifts
from robust_train.data.write import sample, write_shard
from robust_train.nouns import Dataset, Place
from robust_train.read.errors import ConfigError, DataError
from robust_train.read.help import undocumented
from robust_train.read.parse import parse, tree_of
from robust_train.read.registry import datasets
from robust_train.vision import ensure_torchvision_importable
from tests.data.miniature import NAMES, REAL, SYNSETS, grey, png, ranking, write_images, write_labels


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> str:
    return write_labels(tmp_path_factory.mktemp("labels"))


def one(name: str, folder: str | Path, labels: str | None, **fields) -> Shift:
    (shift,) = shifts(name, str(folder), labels, size=4, **fields)
    return shift


def greys(shift: Shift, **asked) -> dict[int, tuple[int, set[int]]]:
    """The grey of every image, with its label and its right classes."""
    found = {}
    for batch in shift.validation_batches(Place(), 2, **asked):
        rows = zip(batch.images[:, 0, 0, 0].tolist(), batch.targets.tolist(), batch.extra["right"], strict=True)
        found |= {level: (label, set(right.nonzero()[:, 0].tolist())) for level, label, right in rows}
    return found


# -- which class an image has -----------------------------------------------------------------------


def test_folders_of_imagenet_v2_are_numbers_not_text(tmp_path, labels):
    """Sorted as text, 10 would be the third folder, and 2 the fifth."""
    folder = write_images(tmp_path, {f"{label}/image.png": 20 * label for label in range(12)})
    assert greys(one("imagenet-v2", folder, labels)) == {20 * label: (label, {label}) for label in range(12)}


def test_a_synset_has_its_own_class_however_few_folders_there_are(tmp_path, labels):
    folder = write_images(tmp_path, {f"{SYNSETS[4]}/a.png": 4, f"{SYNSETS[11]}/b.png": 11})
    for name in ("imagenet-sketch", "stylized-imagenet"):
        assert greys(one(name, folder, labels)) == {4: (4, {4}), 11: (11, {11})}


def test_several_answers_may_be_right_and_images_without_any_are_left_out(tmp_path, labels):
    """ReaL: by the number in the file's name, in class folders or flat alike."""
    names = [f"ILSVRC2012_val_{number + 1:08d}" for number in range(4)]
    flat = write_images(tmp_path / "flat", {f"{name}.png": 10 + i for i, name in enumerate(names)})
    folders = write_images(tmp_path / "sets", {f"{SYNSETS[-i]}/{name}.png": 10 + i for i, name in enumerate(names)})
    expected = {10 + i: (min(right), set(right)) for i, right in enumerate(REAL) if right}
    for folder in (flat, folders):
        shift = one("imagenet-real", folder, labels)
        assert greys(shift) == expected
        assert shift.validation_size() == 3
    batch = next(shift.validation_batches(Place(), 3))
    rows = {10: ranking(3), 12: ranking(11), 13: ranking(2)}
    logits = torch.tensor([rows[level] for level in batch.images[:, 0, 0, 0].tolist()])
    right = dict(zip(batch.images[:, 0, 0, 0].tolist(), shift.right(logits, batch).tolist(), strict=True))
    assert right == {10: True, 12: True, 13: False}


@pytest.fixture
def objects(tmp_path) -> Path:
    """Chairs are of two classes, lamps of one, gloves of none; each image has a red border of two pixels."""
    named = {"Chair": f"{NAMES[7]}; {NAMES[2]}", "Desk lamp": NAMES[5]}
    folders = {"chair": "Chair", "desk_lamp": "Desk lamp", "glove": "Glove"}
    (tmp_path / "mappings").mkdir()
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(named), encoding="utf-8")
    (tmp_path / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(folders), encoding="utf-8")
    for level, folder in enumerate(folders):
        image = Image.new("RGB", (12, 10), (255, 0, 0))
        image.paste(grey(level, (8, 6)), (2, 2))
        write_images(tmp_path / "images", {f"{folder}/one.png": image})
    return tmp_path


@pytest.mark.parametrize("inside", ["", "images"])
def test_an_object_stands_for_several_classes_and_objects_without_any_are_left_out(objects, labels, inside):
    assert greys(one("objectnet", objects / inside, labels)) == {0: (2, {2, 7}), 1: (5, {5})}


def test_the_border_of_objectnet_is_cut_off(objects, labels):
    """Eight by six pixels of one grey are left: whatever is cut out of them, no red comes in."""
    for batch in one("objectnet", objects, labels, crop=1).validation_batches(Place(), 8):
        assert all(len(image.unique()) == 1 for image in batch.images)


def test_mappings_may_lie_among_the_label_files(objects, labels, tmp_path):
    away = write_labels(tmp_path / "labels")
    for path in (objects / "mappings").iterdir():
        path.rename(Path(away) / path.name)
    assert set(greys(one("objectnet", objects, away))) == {0, 1}
    with pytest.raises(DataError, match=r"folder_to_objectnet_label\.json are missing .*put that beside"):
        one("objectnet", objects, labels).check()


# -- which logits are compared ----------------------------------------------------------------------


def test_only_the_classes_of_the_set_compete(tmp_path, labels):
    """A network that prefers a class outside of the 200 is right if it likes the label best among them."""
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/a.png": 1})
    logits = torch.tensor([ranking(0, 5, 1)])
    verdicts = {}
    for name in ("imagenet-a", "imagenet-r", "imagenet-sketch"):
        shift = one(name, folder, labels)
        verdicts[name] = shift.right(logits, next(shift.validation_batches(Place(), 1))).item()
    assert verdicts == {"imagenet-a": True, "imagenet-r": False, "imagenet-sketch": False}


def test_what_is_not_a_number_is_wrong(tmp_path, labels):
    shift = one("imagenet-a", write_images(tmp_path, {f"{SYNSETS[1]}/a.png": 1}), labels)
    batch, logits = next(shift.validation_batches(Place(), 1)), torch.tensor([ranking(1)])
    assert shift.right(logits, batch).item()
    logits[0, 1] = torch.nan
    assert not shift.right(logits, batch).item()


def test_a_network_of_other_classes_is_refused(tmp_path, labels):
    shift = one("imagenet-a", write_images(tmp_path, {f"{SYNSETS[1]}/a.png": 1}), labels)
    with pytest.raises(ConfigError, match=r"needs a network of ImageNet's 12 classes.* has 10"):
        shift.right(torch.zeros(1, 10), next(shift.validation_batches(Place(), 1)))


# -- ImageNet itself ------------------------------------------------------------------------------


def test_imagenets_own_images_may_be_confined_to_the_classes_of_a_shift(tmp_path, labels):
    folder = write_images(tmp_path, {f"{synset}/a.png": label for label, synset in enumerate(SYNSETS)})
    assert len(greys(ImageNet(folder, labels, 4))) == 12
    assert greys(ImageNet(folder, labels, 4, only="a")) == {k: (k, {k}) for k in (1, 4, 7)}
    assert ImageNet(folder, labels, only="a").allowed.tolist() == [1, 4, 7]


@pytest.mark.parametrize("said", [SYNSETS.__getitem__, str])
def test_a_flat_folder_has_the_classes_of_its_ground_truth(tmp_path, labels, said):
    folder = write_images(tmp_path / "flat", {"val_0.png": 0, "val_1.png": 1})
    (tmp_path / "truth.txt").write_text(f"val_1.png {said(0)}\nval_0.png {said(7)}\n", encoding="utf-8")
    truth = str(tmp_path / "truth.txt")
    assert greys(ImageNet(folder, labels, 4, ground_truth=truth)) == {0: (7, {7}), 1: (0, {0})}
    with pytest.raises(DataError, match=r"lies in no class folder.* ground_truth"):
        ImageNet(folder, labels).check()


# -- shards, ranks, limits ------------------------------------------------------------------------


def test_shards_stand_in_for_folders_and_their_keys_say_the_class(tmp_path, labels):
    """Their labels count the folders of the set: for ImageNet-A they are other numbers than ImageNet's."""
    samples = [sample(f"{SYNSETS[label]}/x", "png", png(grey(label)), k) for k, label in enumerate((1, 4, 7))]
    write_shard(tmp_path / "a.tar", samples)
    for folder in (tmp_path, tmp_path / "a.tar"):
        shift = one("imagenet-a", folder, labels, cache=str(tmp_path / "cache"))
        assert greys(shift) == {label: (label, {label}) for label in (1, 4, 7)}
    assert list(shift.checksums()) == ["a.tar"]


def test_keys_without_a_class_leave_it_to_the_label_where_that_is_imagenets(tmp_path, labels):
    write_shard(tmp_path / "flat.tar", [sample("x", "png", png(grey(9)), 9)])
    fields = {"cache": str(tmp_path / "cache")}
    for name in ("imagenet-sketch", "imagenet-v2"):
        assert greys(one(name, tmp_path / "flat.tar", labels, **fields)) == {9: (9, {9})}
    with pytest.raises(DataError, match="holds x, which lies in no class folder"):
        one("imagenet-a", tmp_path / "flat.tar", labels, **fields).check()


def test_ranks_deal_the_chunks_out_and_a_limit_reaches_every_part_of_the_set(tmp_path, labels):
    folder = write_images(tmp_path, {f"{synset}/a.png": label for label, synset in enumerate(SYNSETS)})
    shift = one("imagenet-sketch", folder, labels)
    dealt = [batch for rank in range(3) for batch in shift.validation_batches(Place(rank, 3), 2)]
    assert sorted(torch.cat([batch.targets for batch in dealt]).tolist()) == list(range(12))
    assert [batch.position.tolist() for batch in dealt[:2]] == [[0, 1], [6, 7]]
    assert list(greys(shift, limit=4)) == [0, 3, 6, 9]
    assert len(greys(shift, limit=100)) == 12


def test_a_broken_image_is_counted_and_left_out(tmp_path, labels):
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/a.png": 1, f"{SYNSETS[1]}/b.png": 2})
    (tmp_path / SYNSETS[1] / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{SYNSETS[1]}/a\.png cannot be decoded"):
        next(one("imagenet-a", folder, labels).validation_batches(Place(), 2))
    batch = next(one("imagenet-a", folder, labels, missing=1).validation_batches(Place(), 2))
    assert (batch.position.tolist(), batch.broken) == ([1], None)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(objects, labels):
    batches = [list(one("objectnet", objects, labels, workers=n).validation_batches(Place(), 1)) for n in (0, 1)]
    for alone, helped in zip(*batches, strict=True):
        assert torch.equal(alone.images, helped.images)
        assert torch.equal(alone.extra["right"], helped.extra["right"])


# -- pixels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["bicubic", "bilinear"])
def test_images_are_prepared_to_the_pixel_as_timm_does(tmp_path, labels, way):
    """Odd sides, both orientations, and sides equal to the network's."""
    ensure_torchvision_importable()
    from timm.data import create_transform

    generator = np.random.default_rng(0)
    for side, crop in ((32, 0.875), (24, 0.9), (32, 0.95), (32, 1.0)):
        theirs = create_transform((3, side, side), crop_pct=crop, interpolation=way, mean=(0.0,) * 3, std=(1.0,) * 3)
        for size in ((51, 40), (37, 61), (50, 50), (32, 32), (45, 98)):
            image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
            ours = centred(image, side, crop, way == "bilinear")
            expected = (theirs(image) * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(np.asarray(ours), expected), (side, crop, size)
    folder = write_images(tmp_path, {f"{SYNSETS[1]}/a.png": image})
    (shift,) = shifts("imagenet-a", folder, labels, size=32, crop=1.0, interpolation=way)
    assert np.array_equal(next(shift.validation_batches(Place(), 1)).images[0].permute(1, 2, 0).numpy(), expected)


# -- what is wrong is named -----------------------------------------------------------------------


def test_what_is_absent_or_strange_is_named_with_its_remedy(tmp_path, labels):
    images = write_images(tmp_path / "images", {f"{SYNSETS[2]}/a.png": 1})
    other = write_images(tmp_path / "other", {"val/a.png": 1})
    (tmp_path / "bare").mkdir()
    cases = [
        ("imagenet-a", images, labels, rf"{SYNSETS[2]} is none of the 3 classes of imagenet-a"),
        ("imagenet-a", images, str(tmp_path / "bare"), r"has no imagenet_synsets\.txt. Put it there"),
        ("imagenet-a", images, str(tmp_path / "gone"), "folder of label files .* does not exist"),
        ("imagenet-sketch", other, labels, "'val' is none of its classes. Name the folder .* WordNet ids"),
        ("imagenet-v2", other, labels, "'val' is none of its classes. Name the folder .* class numbers"),
        ("imagenet-real", other, labels, "holds val/a.png, which is none of the 4 validation images"),
        ("imagenet-sketch", str(tmp_path / "bare"), labels, "holds no images"),
        ("imagenet-sketch", str(tmp_path / "gone"), labels, "is no folder of images"),
    ]
    for name, folder, where, message in cases:
        with pytest.raises(DataError, match=message):
            one(name, folder, where).check()


def test_an_object_of_no_class_is_named(objects, labels):
    path = objects / "mappings" / "objectnet_to_imagenet_1k.json"
    path.write_text(json.dumps({"Chair": "thing 77"}), encoding="utf-8")
    with pytest.raises(DataError, match="'Chair' stands for 'thing 77', which is no class of ImageNet"):
        one("objectnet", objects, labels).check()


def test_an_unknown_shift_or_field_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'imagenet-a'"):
        shifts("imagenet_a", "x")
    with pytest.raises(ConfigError, match="crop=2 is not in"):
        shifts("imagenet-a", "x", crop=2.0)
    with pytest.raises(ConfigError, match="evaluation only"):
        shifts("imagenet-a", "x")[0].batches(Place(), 1, 0)


@pytest.mark.parametrize("name", [*SHIFTS, "imagenet"])
def test_a_shift_is_a_data_set_that_a_run_may_name(name):
    shift = parse(Dataset, {"use": name, "folder": "x", "crop": 0.5})
    assert shift == datasets[name]("x", crop=0.5)
    assert parse(Dataset, tree_of(shift)) == shift
    assert undocumented(datasets[name]) == []


def test_the_variants_of_imagenet_v2_are_found_in_one_folder(tmp_path, labels):
    for name in ("matched-frequency", "threshold0.7", "top-images"):
        write_images(tmp_path / f"imagenetv2-{name}-format-val", {"3/a.png": 1})
    found = shifts("imagenet-v2", str(tmp_path), labels, size=4)
    assert [shift.label.split("/")[1] for shift in found] == ["matched-frequency", "threshold-0.7", "top-images"]
    assert [greys(shift) for shift in found] == [{1: (3, {3})}] * 3


# -- the real label files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own", [pytest.param(False, marks=pytest.mark.data, id="given"), pytest.param(True, id="timm's")]
)
def test_the_published_counts_of_the_label_files(request, own):
    """Two sets of 200 classes that share 86; 50,000 reassessed images, of which 46,837 have a label."""
    files = LabelFiles(None if own else str(request.getfixturevalue("real") / "labels"))
    a, r = files.subset("a"), files.subset("r")
    assert [len(files.synsets), len(set(files.names)), len(a), len(r), len(set(a) & set(r))] == [
        1000,
        999,
        200,
        200,
        86,
    ]
    assert (files.synsets[0], files.names[0]) == ("n01440764", "tench, Tinca tinca")
    assert len(files.real) == 50_000
    assert sum(bool(right) for right in files.real) == 46_837


@pytest.mark.data
def test_the_indices_of_a_and_r_are_those_of_their_synsets(real):
    files = LabelFiles(str(real / "labels"))
    for which in ("a", "r"):
        synsets = (real / "labels" / f"imagenet_{which}_synsets.txt").read_text().split()
        assert [files.synsets[label] for label in files.subset(which)] == synsets


def test_a_shift_keeps_its_label_files_when_it_is_copied(tmp_path, labels):
    shift = one("imagenet-a", tmp_path, labels)
    assert replace(shift, crop=1.0).files.folder == labels
