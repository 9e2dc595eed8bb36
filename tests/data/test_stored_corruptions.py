"""ImageNet-C, Tiny-ImageNet-C and CIFAR-10-C as they lie on disk: which row is which image, severity and class."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robust_train.data.corruptions import SEVERITIES
from robust_train.data.stored_corruptions import StoredArrays, StoredFolders, stored
from robust_train.evaluate.corruption_work import Course
from robust_train.fingerprint import digest
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError, DataError

N, SIDE = 7, 8
IDS = ("n01443537", "n01629819", "n09193705")


def arrays(folder: Path, labels: int = 5 * N, names=("fog", "gaussian_noise")) -> Path:
    """Image i at severity s is all 10 s + i; its label i mod 3."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = np.array([10 * severity + i for severity in range(1, 6) for i in range(N)], dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (5 * N, SIDE, SIDE, 3)).copy()
    images[..., 2] = 200  # blue: the last of the file's axes
    for name in names:
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", (np.arange(labels) % N % 3).astype(np.uint8))
    return folder


def folders(folder: Path, names=("fog",), severities=(1, 2, 3, 4, 5), side: int = SIDE) -> Path:
    """Image i of class c at severity s is all 40 c + 10 i + s."""
    for name in names:
        for severity in severities:
            for label, wnid in enumerate(IDS):
                place = folder / name / str(severity) / wnid
                place.mkdir(parents=True)
                for i in range(2):
                    level = 40 * label + 10 * i + severity
                    Image.new("RGB", (side, side), (level, level, level)).save(place / f"val_{i}.JPEG", quality=100)
    return folder


def all_of(data, chunk: int = 3, limit: int | None = None, world: int = 1):
    """(level, target, sample, position) of every image, in the order of positions."""
    found = []
    for rank in range(world):
        for batch in data.validation_batches(Place(rank, world), chunk, limit):
            assert batch.images.dtype == torch.uint8
            columns = (batch.images[:, 0, 0, 0], batch.targets, batch.sample, batch.position)
            found += list(zip(*(column.tolist() for column in columns), strict=True))
    return sorted(found, key=lambda row: row[3])


@pytest.mark.parametrize("labels", [N, 5 * N])
def test_severity_s_of_an_array_is_its_s_th_part(tmp_path, labels):
    data = stored(arrays(tmp_path, labels), classes=3, size=SIDE)
    for severity in range(1, 6):
        expected = [(10 * severity + i, i % 3, i, i) for i in range(N)]
        assert all_of(data.at("fog", severity)) == expected
        assert all_of(data.at("fog", severity), chunk=2, world=3) == expected
        assert all_of(data.at("fog", severity), limit=4) == expected[:4]
    assert data.validation_size() == N
    assert isinstance(data, StoredArrays)


def test_cifar_rows_20000_to_29999_are_severity_3(tmp_path):
    """The published arrays have 50,000 rows; these are as long, of one pixel each."""
    np.save(tmp_path / "fog.npy", (np.arange(50_000) // 10_000 + 1).astype(np.uint8).repeat(3).reshape(-1, 1, 1, 3))
    np.save(tmp_path / "labels.npy", np.zeros(50_000, dtype=np.uint8))
    data = stored(tmp_path, 10, 1).at("fog", 3)
    levels = torch.cat([batch.images.flatten() for batch in data.validation_batches(Place(), 1000)])
    assert (levels == 3).all()
    assert data.validation_size() == 10_000


def test_channels_come_first(tmp_path):
    batch = next(stored(arrays(tmp_path), 3, SIDE).at("fog", 1).validation_batches(Place(), 2))
    assert batch.images.shape == (2, 3, SIDE, SIDE)
    assert (batch.images[:, 2] == 200).all()
    assert (batch.images[1, :2] == 11).all()


@pytest.mark.parametrize("nested", [False, True])
def test_folders_are_labelled_by_their_sorted_names(tmp_path, nested):
    folders(tmp_path / "weather" if nested else tmp_path)
    data = stored(tmp_path, classes=3, size=SIDE)
    assert isinstance(data, StoredFolders)
    assert data.corruptions() == ("fog",)
    for severity in (1, 5):
        number = [(label, i) for label in range(3) for i in range(2)]
        expected = [(40 * label + 10 * i + severity, label, n, n) for n, (label, i) in enumerate(number)]
        assert all_of(data.at("fog", severity)) == expected
        assert all_of(data.at("fog", severity), chunk=1, world=2) == expected
    assert data.at("fog", 1).names() == list(IDS)
    assert [row[1] for row in all_of(data.at("fog", 1), limit=3)] == [0, 1, 2]  # evenly over the classes


def test_a_list_of_classes_says_the_labels_and_leaves_others_out(tmp_path):
    """The last and the first id, in this order: the images of the second are not judged."""
    order = tmp_path / "classes.json"
    order.write_text(json.dumps([{"index": 0, "wnid": IDS[2]}, {"index": 1, "wnid": IDS[0]}]))
    data = stored(folders(tmp_path / "set"), 2, SIDE, order).at("fog", 2)
    assert [row[:2] for row in all_of(data)] == [(2, 1), (12, 1), (82, 0), (92, 0)]
    assert data.names() == [IDS[2], IDS[0]]
    order.write_text(json.dumps(list(IDS)))
    assert [row[1] for row in all_of(stored(tmp_path / "set", 3, SIDE, order).at("fog", 2))] == [0, 0, 1, 1, 2, 2]


def test_verdicts_are_kept_under_the_labels_and_the_time_the_images_were_written(tmp_path):
    """Names and bytes, which the checksum is of, are the same throughout."""
    folders(tmp_path / "set")
    order = tmp_path / "classes.json"

    def stamps(ids):
        order.write_text(json.dumps(list(ids)))
        found = stored(tmp_path / "set", 3, SIDE, order)
        contents = {f"fog/{severity}": digest(found.at("fog", severity)) for severity in SEVERITIES}
        return contents, Course(("fog",), stored=found).on({}, 0)

    first = stamps(IDS)
    assert stamps(IDS) == first
    assert len(set(first[0].values())) == 5
    other = stamps(IDS[::-1])
    assert all(other[0][name] != first[0][name] for name in first[0])
    assert other[1] == first[1]
    image = next((tmp_path / "set").rglob("fog/2/**/*.*"))
    os.utime(image, ns=(1, 1))
    later = stamps(IDS)
    assert [name for name in first[0] if later[0][name] != first[0][name]] == ["fog/2"]
    assert later[1] == first[1]


def test_files_that_changed_have_other_checksums(tmp_path):
    for data in (stored(arrays(tmp_path / "a"), 3, SIDE), stored(folders(tmp_path / "f"), 3, SIDE)):
        before = data.at("fog", 1).checksums()
        assert data.at("fog", 1).checksums() == before
    np.save(tmp_path / "a" / "fog.npy", np.zeros((5, SIDE, SIDE, 3), dtype=np.uint8))
    (tmp_path / "f" / "fog" / "1" / IDS[0] / "val_0.JPEG").write_bytes(b"")
    assert stored(tmp_path / "a", 3, SIDE).at("fog", 1).checksums() != before
    assert stored(tmp_path / "f", 3, SIDE).at("fog", 1).checksums() != before


def test_what_is_absent_is_named_with_what_is_there(tmp_path):
    data = stored(arrays(tmp_path), 3, SIDE)
    with pytest.raises(ConfigError, match=r"holds no 'frog'; did you mean 'fog'\? \(there: gaussian_noise, fog\)"):
        data.at("frog", 1)
    with pytest.raises(ConfigError, match="severity=0 of fog"):
        data.at("fog", 0)
    with pytest.raises(ConfigError, match="no corruption at all"):
        stored(tmp_path / "nowhere", 3, SIDE).at("fog", 1)
    with pytest.raises(ConfigError, match="for evaluation only"):
        data.batches(Place(), 1, 0)
    assert data.train_size() == 0
    with pytest.raises(DataError, match=r"snow.npy does not exist"):
        replace(data, corruption="snow").check()


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"uint8 \[35, 8, 8, 3\], not uint8 \[5 n, 32, 32, 3\]"):
        stored(arrays(tmp_path), 3, 32).at("fog", 1).check()
    with pytest.raises(DataError, match="labels from 0 to 2, but the network's run from 0 to 1"):
        stored(tmp_path, 2, SIDE).at("fog", 1).check()
    np.save(tmp_path / "labels.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"\[3\] labels for 35 images"):
        stored(tmp_path, 3, SIDE).at("fog", 1).check()
    (tmp_path / "fog.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"fog\.npy cannot be read"):
        stored(tmp_path, 3, SIDE).at("fog", 1).check()


def test_folders_that_do_not_fit_are_refused(tmp_path):
    folders(tmp_path)
    with pytest.raises(DataError, match="in 3 class folders, but the network has 1,000"):
        stored(tmp_path, 1000, SIDE).at("fog", 1).check()
    with pytest.raises(DataError, match=r"fog/1 holds an image of 8x8 pixels, but the network takes 16x16: resizing"):
        next(stored(tmp_path, 3, 16).at("fog", 1).validation_batches(Place(), 2))
    (tmp_path / "fog" / "1" / IDS[1] / "val_1.JPEG").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"{IDS[1]}/val_1.JPEG cannot be decoded"):
        list(stored(tmp_path, 3, SIDE).at("fog", 1).validation_batches(Place(), 2))
    order = tmp_path / "classes.json"
    order.write_text("{}")
    for text, said in (
        ('{"a": [1, 2, true]}', "cannot be read"),
        ('[{"wnid": "n1", "index": 7}]', "label 7, but labels run"),
        ("[]", "are none"),
        ('["n7"]', "no image"),
    ):
        order.write_text(text)
        with pytest.raises(DataError, match=said):
            stored(tmp_path, 3, SIDE, order).at("fog", 1).check()


def test_each_folder_is_listed_once_and_each_image_looked_at_once_whoever_asks(tmp_path, monkeypatch):
    """ImageNet-C: 75 folders of 50,000 names, asked for by pieces of every round, by labels, sizes and times."""
    from robust_train.data import pictures, stored_corruptions
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate

    listed, stats = [], []
    images_below, stat = pictures.images_below, pictures.stat
    monkeypatch.setattr(pictures, "images_below", lambda folder: listed.append(str(folder)) or images_below(folder))
    monkeypatch.setattr(pictures, "stat", lambda path: stats.append(str(path)) or stat(path))
    kinds = ("fog", "gaussian_noise")
    data = stored_corruptions.StoredFolders(str(folders(tmp_path, kinds)), 3, SIDE)
    course = Course(kinds, chunk=4, stored=data)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 3)).eval()
    store = Store(tmp_path / "store", {"net": "a"})
    report = course.report(evaluate(course, {"net": network}, data.at("fog", 1), store=store))
    course.on({}, 0)
    assert len(report.result.counts) == 10
    assert sorted(listed) == sorted(str(tmp_path / kind / str(s)) for kind in kinds for s in range(1, 6))
    assert len(stats) == 60
    assert len(set(stats)) == 60
    one, other = data.at("fog", 1), data.at("gaussian_noise", 5)
    assert one._pictures.keys is other._pictures.keys, "held once"
    assert len(pickle.dumps(other)) < 1000
