"""tools/make_shards: from whatever images lie in to shards with a manifest, resumable, overwriting nothing."""

from __future__ import annotations

import io
import json
import shutil
import struct
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from robust_train.data.digits import Digits, load, split
from robust_train.data.files import making
from robust_train.data.manifest import entries, read_manifest
from robust_train.data.shards import Shards
from robust_train.data.write import verify
from robust_train.nouns import Place
from robust_train.read.errors import ConfigError, DataError
from robust_train.tools import make_shards


def make(*words) -> int:
    return make_shards.main([str(word) for word in words])


def coloured(red: int, size=(12, 9), form: str = "png") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 100, 50)).save(file, form)
    return file.getvalue()


@pytest.fixture
def folders(tmp_path):
    """Three classes of 5 images; the red channel says which: 10 class + image."""
    for label, name in enumerate(["ant", "bee", "cat"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "images" / name / f"{name}.{i}.png").write_bytes(coloured(10 * label + i))
    return tmp_path / "images"


def read(out, classes: int, size: int = 8, split: str = "train", **fields):
    """{red of the middle: label} of all samples."""
    urls = str(out / f"{split}-*.tar")
    data = Shards(urls, classes=classes, size=size, validation=urls, cache=str(out.parent / "cache"), **fields)
    data.check()
    batches = list(data.validation_batches(Place(), 1000))
    return {int(i[0, 4, 4]): int(t) for b in batches for i, t in zip(b.images, b.targets, strict=True)}


def test_class_folders_become_shards_with_labels_in_the_order_of_names(folders, tmp_path):
    assert make(folders, tmp_path / "out", "--size-per-shard", 4, "--processes", 1) == 0
    assert read(tmp_path / "out", 3) == {10 * label + i: label for label in range(3) for i in range(5)}
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["ant", "bee", "cat"]
    assert [entry.samples for entry in entries(read_manifest(tmp_path / "out"), "train")] == [4, 4, 4, 3]
    assert verify(tmp_path / "out") == []
    stored = next(islice(Shards(str(tmp_path / "out"), 3, 8, cache=str(tmp_path / "c")).batches(Place(), 1, 0), 1))
    assert stored.images.shape == (1, 3, 8, 8)


def test_folders_named_by_numbers_are_ordered_as_numbers(tmp_path):
    """As in ImageNet-V2: 10 comes after 9, not after 1."""
    for label in (0, 1, 2, 9, 10):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        (tmp_path / "images" / str(label) / "a.png").write_bytes(coloured(label))
    make(tmp_path / "images", tmp_path / "out", "--processes", 1)
    assert read(tmp_path / "out", 5) == {0: 0, 1: 1, 2: 2, 9: 3, 10: 4}


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(folders, tmp_path):
    for processes in (1, 2):
        make(folders, tmp_path / f"out{processes}", "--size-per-shard", 4, "--processes", processes)
    assert read_manifest(tmp_path / "out1") == read_manifest(tmp_path / "out2")
    assert verify(tmp_path / "out2") == []


def test_an_interrupted_command_goes_on_and_rewrites_nothing(folders, tmp_path, monkeypatch):
    make(folders, tmp_path / "whole", "--size-per-shard", 4, "--processes", 1)
    shard, count = making.shard, iter(range(99))

    def killed(*words):
        if next(count) == 2:
            raise KeyboardInterrupt
        return shard(*words)

    monkeypatch.setattr(making, "shard", killed)
    with pytest.raises(KeyboardInterrupt):
        make(folders, tmp_path / "out", "--size-per-shard", 4, "--processes", 1)
    half = read_manifest(tmp_path / "out")["splits"]["train"]
    assert (half["complete"], len(half["shards"])) == (False, 2)
    (tmp_path / "out" / "train-000002.tar").write_bytes(b"written, but not noted when the power went")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-00000[01].tar")}
    make(folders, tmp_path / "out", "--size-per-shard", 4, "--processes", 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_manifest(tmp_path / "out") == read_manifest(tmp_path / "whole")
    assert verify(tmp_path / "out") == []


def test_a_killed_command_goes_on_from_its_journal_and_the_manifest_is_written_twice_however_many_shards(
    folders, tmp_path, monkeypatch
):
    """A kill leaves no time for a manifest: what is there is known by a line each, the last one cut off."""
    make(folders, tmp_path / "whole", "--size-per-shard", 1, "--processes", 1)
    shard, writes, out = making.shard, [], tmp_path / "out"
    write = making.write_json
    monkeypatch.setattr(making, "write_json", lambda path, value: (writes.append(path.name), write(path, value)))
    make(folders, out, "--size-per-shard", 1, "--processes", 1)
    assert writes.count("manifest.json") == 2
    assert not list(out.glob(".*")), "the journal is gone"

    shutil.rmtree(out)
    begun = {}

    def note(source, path, numbers):
        if len(begun) == 3:
            begun["manifest"] = (out / "manifest.json").read_bytes()
            raise KeyboardInterrupt
        begun[path] = 1
        return shard(source, path, numbers)

    monkeypatch.setattr(making, "shard", note)
    with pytest.raises(KeyboardInterrupt):
        make(folders, out, "--size-per-shard", 1, "--processes", 1)
    (out / "manifest.json").write_bytes(begun["manifest"])  # as a kill would leave it: it knows of none
    with (out / ".train.made.jsonl").open("ab") as file:
        file.write(b'[{"file": "train-0000')
    before = {path: path.stat().st_mtime_ns for path in begun if path != "manifest"}
    assert len(before) == 3
    monkeypatch.setattr(making, "shard", shard)
    make(folders, out, "--size-per-shard", 1, "--processes", 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert read_manifest(out) == read_manifest(tmp_path / "whole")
    assert not list(out.glob(".*"))


def test_finished_shards_are_not_overwritten(folders, tmp_path):
    out = tmp_path / "out"
    make(folders, out, "--processes", 1)
    written = (out / "train-000000.tar").stat().st_mtime_ns
    make(folders, out, "--processes", 1)
    assert (out / "train-000000.tar").stat().st_mtime_ns == written
    with pytest.raises(DataError, match="made otherwise"):
        make(folders, out, "--size-per-shard", 4, "--processes", 1)
    (folders / "ant" / "new.png").write_bytes(coloured(7))
    with pytest.raises(DataError, match="made otherwise"):
        make(folders, out, "--processes", 1)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"is there already and no manifest speaks of it"):
        make(folders, out, "--processes", 1)
    (folders / "dog").mkdir()
    with pytest.raises(DataError, match="lists other classes"):
        make(folders, out, "--split", "validation", "--processes", 1)


def test_an_altered_shard_is_noticed(folders, tmp_path):
    make(folders, tmp_path / "out", "--processes", 1)
    path = tmp_path / "out" / "train-000000.tar"
    path.write_bytes(path.read_bytes().replace(b"\x00\x00\x00\x0d", b"\x00\x00\x00\x0e", 1))
    assert verify(tmp_path / "out") == ["train-000000.tar: its bytes are not those that the manifest speaks of"]
    with pytest.raises(DataError, match="is not the file that was written"):
        make(folders, tmp_path / "out", "--processes", 1)


def test_unreadable_images_are_left_out_and_named(folders, tmp_path, capsys):
    (folders / "bee" / "torn.jpg").write_bytes(coloured(1, form="jpeg")[:200])
    make(folders, tmp_path / "out", "--processes", 1)
    assert "left out, unreadable: bee/torn.jpg" in capsys.readouterr().err
    split = read_manifest(tmp_path / "out")["splits"]["train"]
    assert split["samples"] == 15
    assert [name.split(":")[0] for name in split["unreadable"]] == ["bee/torn.jpg"]


def test_large_images_are_resized_and_small_ones_kept(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "large.png").write_bytes(coloured(10, (80, 40)))
    (tmp_path / "images" / "a" / "small.png").write_bytes(coloured(20, (30, 16)))
    source = make_shards.ClassFolders(str(tmp_path / "images"), "train", 20)
    large, small = source.sample(0), source.sample(1)
    assert Image.open(io.BytesIO(large["jpg"])).size == (40, 20)
    assert small["png"] == coloured(20, (30, 16))


def test_a_data_set_says_what_its_pixels_went_through(tmp_path):
    """What make_shards did stays said after --index; of shards from elsewhere, and of several makings, that too."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "images" / "a" / f"{number}.png").write_bytes(coloured(10 * number, (80, 40)))
    out = tmp_path / "out"
    common = tmp_path / "images", out, "--size-per-shard", 2, "--processes", 1, "--split"
    make(*common, "small", "--resize", 20)
    make(*common, "whole")

    def told(*names: str) -> list[str]:
        urls = tuple(str(out / name) for name in names)
        return Shards(urls, 1, 14, validation=urls, cache=str(tmp_path / "cache")).preprocessing()

    resized = "short sides above 20 pixels resized to 20 (bicubic) and stored as JPEG of quality 95"
    read = "short sides resized to 16 pixels (bicubic), the middle 14 x 14 cut out; images of 14 x 14 as they are"
    for _ in range(2):
        assert told("small-*.tar") == [f"{resized}, when shards were made", read]
        assert told("whole-*.tar") == [read]
        both = f"2 of 3 shards: {resized}, when they were made"
        assert told("small-*.tar", "whole-000000.tar") == [both, read]
        make(out, "--index", "--processes", 1)
    shutil.copy(out / "small-000000.tar", tmp_path / "lone.tar")
    unknown = "what was done to the pixels before is not known: no manifest of make_shards says it"
    assert told(str(tmp_path / "lone.tar")) == [unknown, read]
    assert told(str(tmp_path / "lone.tar"), "small-000001.tar") == [
        f"1 of 2 shards: {resized}, when they were made", f"1 of 2 shards: {unknown}", read
    ]  # fmt: skip


@pytest.fixture
def flat(tmp_path):
    """Four validation images, of classes n02, n01, n02, n03 by number 2, 1, 2, 3 of a kit whose order is reversed."""
    (tmp_path / "val").mkdir()
    for i in range(4):
        (tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG").write_bytes(coloured(40 * i, form="jpeg"))
    return tmp_path / "val"


LABELS = [1, 0, 1, 2]  # of n02, n01, n02, n03


@pytest.mark.parametrize(
    "text",
    [
        "n02\nn01\nn02\nn03\n",
        "1\n0\n1\n2\n",
        "ILSVRC2012_val_00000004.JPEG n03\nILSVRC2012_val_00000002.JPEG n01\n"
        "ILSVRC2012_val_00000001.JPEG n02\nILSVRC2012_val_00000003.JPEG n02\n",
        "ImageId,PredictionString\nILSVRC2012_val_00000004,n03 1 2 3 4\n"
        "ILSVRC2012_val_00000003,n02 1 2 3 4 n02 5 6 7 8\n"
        "ILSVRC2012_val_00000002,n01 1 2 3 4\nILSVRC2012_val_00000001,n02 1 2 3 4\n",
    ],
)
def test_the_flat_validation_folder_takes_its_labels_from_its_file(flat, tmp_path, text):
    (tmp_path / "truth.csv").write_text(text)
    make(flat, tmp_path / "out", "--format", "imagenet-val", "--ground-truth", tmp_path / "truth.csv", "--split", "val")
    found = read(tmp_path / "out", 3, split="val")
    assert [label for _, label in sorted(found.items())] == LABELS


def test_the_development_kits_numbers_are_read_by_its_own_list(flat, tmp_path):
    """The kit numbers classes from 1 in an order that is not the sorted one: without its list no label is right."""
    from scipy.io import savemat

    (tmp_path / "kit").mkdir()
    truth = tmp_path / "kit" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n3\n2\n1\n")  # 1 is n03, 2 is n02, 3 is n01
    words = [flat, tmp_path / "out", "--format", "imagenet-val", "--ground-truth", truth, "--split", "val"]
    with pytest.raises(DataError, match=r"Put the kit's meta.mat beside it"):
        make(*words)
    synsets = np.array(
        [(1, "n03", "c"), (2, "n02", "b"), (3, "n01", "a")],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
    )
    savemat(tmp_path / "kit" / "meta.mat", {"synsets": synsets})
    make(*words)
    assert [label for _, label in sorted(read(tmp_path / "out", 3, split="val").items())] == LABELS


def test_a_ground_truth_of_another_folder_is_refused(flat, tmp_path):
    words = [flat, tmp_path / "out", "--format", "imagenet-val", "--split", "val"]
    with pytest.raises(DataError, match="name their file with --ground-truth"):
        make(*words)
    (tmp_path / "truth.txt").write_text("n01\nn02\n")
    with pytest.raises(DataError, match=r"has 2 lines, but .* has 4 images"):
        make(*words, "--ground-truth", tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("n01\nn02\nn01\nn04\n")
    (tmp_path / "names.txt").write_text("n01 ant\nn02 bee\nn03 cat\n")
    with pytest.raises(DataError, match=r"'n04' among them, are not in the list of 3 classes"):
        make(*words, "--ground-truth", tmp_path / "truth.txt", "--classes", tmp_path / "names.txt")


def test_torchvisions_sets_become_lossless_shards(tmp_path):
    """Five MNIST files written here: image i is all i, label i."""
    raw = tmp_path / "sets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = np.repeat(np.arange(5, dtype=np.uint8), 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 5, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 5) + bytes(range(5)))
    make(tmp_path / "sets", tmp_path / "out", "--format", "torchvision:MNIST", "--split", "train", "--processes", 1)
    assert read(tmp_path / "out", 10, size=28, channels=1) == {i: i for i in range(5)}
    with pytest.raises(DataError, match=r"torchvision cannot read SVHN .* add --download"):
        make(tmp_path / "sets", tmp_path / "svhn", "--format", "torchvision:SVHN")
    with pytest.raises(ConfigError, match="torchvision has no data set 'CIFAR'"):
        make(tmp_path / "sets", tmp_path / "x", "--format", "torchvision:CIFAR")


def test_digits_are_scikit_learns(tmp_path):
    """Both ways to write them give each digit once, to the pixel."""
    for name in ("train", "validation"):
        make("digits", tmp_path / "out", "--split", name, "--size-per-shard", 400, "--processes", 1)
    data = Digits(folder=str(tmp_path / "digits"))
    data.prepare()
    data.check()
    assert (data.train_size(), data.validation_size()) == (1437, 360)
    images, labels = load()
    assert images.shape == (1797, 32, 32)
    numbers = split()["validation"]
    own = next(data.validation_batches(Place(), 360))
    assert torch.equal(own.images[:, 0], torch.from_numpy(images[numbers]))
    assert own.targets.tolist() == labels[numbers].tolist()
    assert [int((own.targets == k).sum()) for k in range(10)] == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    urls = tuple(str(tmp_path / "out" / f"{name}-*.tar") for name in ("train", "validation"))
    made = Shards(urls[0], 10, 32, urls[1], channels=1, cache=str(tmp_path / "cache"))
    other = next(made.validation_batches(Place(), 360))
    assert sorted(map(bytes, other.images.numpy())) == sorted(map(bytes, own.images.numpy()))


def test_digits_are_blown_up_bilinearly(tmp_path):
    """Corners of align_corners=False keep the corner pixel; between two centres the middle is their mean."""
    from sklearn.datasets import load_digits

    small, (large, _) = load_digits().images, load()
    assert np.array_equal(large[:, 0, 0], np.round(255 * small[:, 0, 0] / 16))
    exact = 255 / 16 * (0.875 * small[:, 3, 2] + 0.125 * small[:, 3, 3])  # column 10: (10.5 / 4 - 0.5) = 2.125
    row = 255 / 16 * (0.875 * small[:, 4, 2] + 0.125 * small[:, 4, 3])
    assert np.abs(large[:, 14, 10] - (0.875 * exact + 0.125 * row)).max() <= 0.51  # row 14: 3.125


def test_digits_are_written_once_and_never_over_other_files(tmp_path):
    data = Digits(folder=str(tmp_path / "digits"))
    data.prepare()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*")}
    Digits(folder=str(tmp_path / "digits")).prepare()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and holds no manifest"):
        Digits(folder=str(tmp_path / "mine")).prepare()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_manifest_is_written_for_shards_made_elsewhere(tmp_path, write_shards, capsys):
    write_shards(tmp_path / "far", [5, 7], [".tar", ".tar.gz"])
    before = read_manifest(tmp_path / "far")
    (tmp_path / "far" / "manifest.json").unlink()
    make(tmp_path / "far", "--index", "--processes", 1)
    assert entries(read_manifest(tmp_path / "far"), "part") == entries(before)
    assert "2 shards, 12 samples" in capsys.readouterr().out
    assert make(tmp_path / "far", "--verify") == 0
    (tmp_path / "far" / "part-001.tar.gz").write_bytes(b"")
    assert make(tmp_path / "far", "--verify") == 1
    with pytest.raises(DataError, match=r"shard part-001.tar.gz"):
        make(tmp_path / "far", "--index", "--processes", 1)


@pytest.mark.parametrize(
    ("file", "split"), [("cifar10-train-000004.tar.gz", "cifar10-train"), ("val.tar", "val"), ("000001.tar", "000001")]
)
def test_a_shards_split_is_its_name_without_the_number(file, split):
    assert make_shards.split_name(file) == split


def test_bad_commands_are_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        make(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(DataError, match="holds no class folders"):
        make(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="--format tfds is none of"):
        make(tmp_path, tmp_path / "out", "--format", "tfds")
    with pytest.raises(SystemExit):
        make(tmp_path)
    with pytest.raises(ConfigError, match="digits have no split 'test'"):
        make("digits", tmp_path / "out", "--split", "test")
