"""A folder of class folders, or a table of files, as training and validation images: the numbers of its shards."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from robust_train.data.files import making, own
from robust_train.data.shards import Shards
from robust_train.loading import validation_of
from robust_train.nouns import Place
from robust_train.read.errors import DataError
from robust_train.tools import make_shards

CLASSES = ("ant", "bee", "cat")


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Image i of class c is all 40 c + i."""
    for label, name in enumerate(CLASSES):
        for i in range(4):
            picture(tmp_path / "train" / name / f"{i}.png", 40 * label + i)
    return tmp_path / "train"


def data(train, validation=None, classes: int = 3, **fields) -> Shards:
    home = Path(train if isinstance(train, str | Path) else train[0]).parent
    fixed = {"size": 4, "channels": 1, "cache": str(home / "cache")}
    validation = None if validation is None else str(validation)
    return Shards(str(train), classes=classes, validation=validation, **fixed | fields)


def shown(data: Shards, world: int = 1, start: int = 0) -> list[tuple[int, int]]:
    """(level, label) of each image of some updates, in the order of positions."""
    data.prepare()
    data.check()
    ranks = [list(islice(data.batches(Place(rank, world), 4, 7, start), 5)) for rank in range(world)]
    updates = [[batch for rank in ranks for batch in [rank[update]]] for update in range(5)]
    return [pair for update in updates for batch in update for pair in pairs(batch)]


def pairs(batch) -> list[tuple[int, int]]:
    return list(zip(batch.images[:, 0, 0, 0].tolist(), batch.targets.tolist(), strict=True))


def judged(data: Shards) -> list[tuple[int, int]]:
    data.prepare()
    return sorted(pair for batch in data.validation_batches(Place(), 100) for pair in pairs(batch))


def table(path: Path, rows, head: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(f"{name},{label}\n" for name, label in rows))
    return path


def test_a_folder_gives_the_numbers_of_its_shards(folder, tmp_path):
    """To the bit: images, labels, order, on any number of ranks, from any update on, by either reader."""
    make_shards.main([str(folder), str(tmp_path / "out"), "--processes", "1"])
    shards = data(tmp_path / "out" / "train-*.tar")
    mine = data(folder)
    assert shown(mine) == shown(shards)
    assert shown(mine, world=2) == shown(shards)
    assert shown(mine, start=3) == shown(shards, start=3)
    assert mine.checksums() == shards.checksums()
    assert mine.names() == list(CLASSES)
    streams = {"reader": "streams", "streams": 2, "window": 4}
    assert shown(replace(mine, **streams)) == shown(replace(shards, **streams))
    assert {(40 * label + i, label) for label in range(3) for i in range(4)} >= set(shown(mine))


@pytest.mark.parametrize("head", ["", "path,label\n", "split,label,filename\n"])
@pytest.mark.parametrize("numbers", [False, True])
def test_a_table_gives_the_numbers_of_its_images(folder, tmp_path, head, numbers):
    """Paths from its own folder on, out of it too, or whole; labels are numbers or names."""
    rows = []
    for label, name in enumerate(CLASSES):
        for i in range(4):
            path = folder / name / f"{i}.png"
            said = str(path) if i == 0 else f"../train/{name}/{i}.png"
            row = (said, label if numbers else name)
            rows.append((f"x,{row[1]}", row[0]) if head.startswith("split") else row)
    found = data(table(tmp_path / "tables" / "mine.csv", rows, head))
    assert set(shown(found)) <= {(40 * label + i, label) for label in range(3) for i in range(4)}
    assert judged(replace(found, validation=found.train)) == [(40 * c + i, c) for c in range(3) for i in range(4)]
    assert found.names() == (["0", "1", "2"] if numbers else list(CLASSES))


def test_it_becomes_shards_once_and_again_where_it_changed(folder, monkeypatch, capsys):
    calls = []
    make = own.make
    monkeypatch.setattr(own, "make", lambda *words: calls.append(words) or make(*words))
    first = shown(data(folder, folder))
    assert "12 images become shards in" in capsys.readouterr().err
    assert shown(data(folder, folder)) == first
    assert len(calls) == 1, "training and validation of one folder are one set of shards"
    picture(folder / "ant" / "0.png", 200)
    assert any(level == 200 for level, _ in shown(data(folder)))
    assert len(calls) == 2


def test_a_killed_making_goes_on(folder, monkeypatch):
    monkeypatch.setattr(own, "PER_SHARD", 4)
    whole = shown(replace(data(folder), cache=str(folder.parent / "other")))
    shard, count = making.shard, iter(range(99))

    def killed(*words):
        if next(count) == 1:
            raise KeyboardInterrupt
        return shard(*words)

    monkeypatch.setattr(making, "shard", killed)
    with pytest.raises(KeyboardInterrupt):
        data(folder).prepare()
    monkeypatch.setattr(making, "shard", shard)
    assert shown(data(folder)) == whole


def test_validation_has_the_labels_of_training(folder, tmp_path):
    """Also where some classes have no folder: cat is 2, though it is the first that lies there."""
    picture(tmp_path / "val" / "cat" / "9.png", 99)
    assert judged(data(folder, tmp_path / "val")) == [(99, 2)]
    assert judged(data(folder, table(tmp_path / "val.csv", [("val/cat/9.png", "cat")]))) == [(99, 2)]
    make_shards.main([str(folder), str(tmp_path / "out"), "--processes", "1"])
    assert judged(data(tmp_path / "out" / "train-*.tar", tmp_path / "val")) == [(99, 2)]
    picture(tmp_path / "val" / "dog" / "9.png", 99)
    with pytest.raises(DataError, match=r"holds class 'dog', which is none of the 3 that .*train has"):
        data(folder, tmp_path / "val").prepare()


def test_images_of_other_classes_than_the_runs_are_refused_in_evaluation(folder, tmp_path):
    """--data: a folder of three classes, one of which is another, would be read with wrong labels."""
    for name in ("bee", "cat", "dog"):
        picture(tmp_path / "new" / name / "0.png", 5)
        picture(tmp_path / "same" / CLASSES[("bee", "cat", "dog").index(name)] / "0.png", 5)
    with pytest.raises(DataError, match="holds class 'dog', which is none of the 3"):
        validation_of(data(folder), str(tmp_path / "new"))
    assert judged(validation_of(data(folder), str(tmp_path / "same"))) == [(5, 0), (5, 1), (5, 2)]
    gone = data(tmp_path / "gone" / "train")
    assert judged(replace(validation_of(gone, str(tmp_path / "same")), cache=str(tmp_path / "c"))) == [
        (5, 0),
        (5, 1),
        (5, 2),
    ]


def test_classes_json_beside_the_images_says_the_labels(folder):
    (folder / "classes.json").write_text(json.dumps({"cat": 0, "bee": 1, "ant": 2, "eel": 3}))
    assert judged(data(folder, folder, classes=4)) == sorted((40 * c + i, 2 - c) for c in range(3) for i in range(4))


def test_what_does_not_fit_is_said_with_its_remedy(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"images of 3 classes, but data.classes=10. Say data.classes=3, or write"):
        data(folder, classes=10).prepare()
    (folder / "ant" / "torn.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"1 of 13 images cannot be read, ant/torn.png.* data.missing=1 \(now 0\)"):
        data(folder).prepare()
    data(folder, missing=1).prepare()
    os.remove(folder / "ant" / "torn.png")
    monkeypatch.setattr(own.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match=r"Name another data.cache, or make shards where there is room"):
        data(folder, cache=str(tmp_path / "small")).prepare()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("train/ant/0.png", "ant"), ("train/ant/0.png", "bee")], "names train/ant/0.png 2 times"),
        ([("train/ant/9.png", "ant")], "9.png is no file. Write path,label on each line"),
        ([("train/ant", "ant")], "is called like no image"),
        ([("train/ant/0.png", "")], r"line 1 is no path and label"),
        ([("train/ant/0.png", "ant,x")], r"line 1 is no path and label \(3 columns, not 2\)"),
        ([("train/ant/0.png", 3)], "images of 4 classes, but data.classes=3"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(folder, tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        data(table(tmp_path / "mine.csv", rows)).prepare()


def test_a_folder_that_is_none_is_said_as_before(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no .tar or .tar.gz shard"):
        data(tmp_path / "empty").prepare()
    with pytest.raises(DataError, match="does not exist"):
        data(tmp_path / "gone").prepare()
    with pytest.raises(DataError, match=r"the list of images .* does not exist"):
        data(tmp_path / "gone.csv").prepare()


def test_images_of_a_folder_are_what_they_were(folder):
    found = next(data(folder, folder).validation_batches(Place(), 12))
    assert found.images.dtype == torch.uint8
    assert found.images.shape == (12, 1, 4, 4)
