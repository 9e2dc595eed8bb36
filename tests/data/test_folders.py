"""What is a class, in which order, what is an image: one rule, wherever folders are read."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from robust_train.data.decode import Undecodable, decode
from robust_train.data.files.folders import FORMATS, IMAGES, class_folders, images_below, in_order, key_of, keys_of
from robust_train.data.files.listed import chosen
from robust_train.data.manifest import read_manifest
from robust_train.data.shifts import shifts
from robust_train.data.sources import ClassFolders
from robust_train.data.stored_corruptions import stored
from robust_train.read.errors import DataError
from robust_train.tools import make_shards
from tests.data.miniature import SYNSETS, grey, png, write_images, write_labels

LEFT = (".git", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


def make(*words) -> int:
    return make_shards.main([str(word) for word in words])


# -- classes ----------------------------------------------------------------------------------------


def test_folders_that_tools_leave_are_no_classes_anywhere(tmp_path):
    """In shards, in stored corruptions and in shifts alike; nor are pictures below them images."""
    names = {f"{SYNSETS[1]}/a.png": 1, f"{SYNSETS[4]}/b.png": 4}
    litter = {f"{folder}/a.png": 9 for folder in LEFT} | {f"{SYNSETS[1]}/{folder}/a.png": 9 for folder in LEFT}
    litter |= {f"{SYNSETS[1]}/._a.png": 9, ".a.png": 9}
    write_images(tmp_path / "images", names | litter)
    write_images(tmp_path / "c" / "fog" / "1", names | litter)
    make(tmp_path / "images", tmp_path / "out", "--processes", 1)
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == [SYNSETS[1], SYNSETS[4]]
    assert read_manifest(tmp_path / "out")["splits"]["train"]["samples"] == 2
    found = stored(tmp_path / "c", 2, 4).at("fog", 1)
    assert (found.names(), found.validation_size()) == ([SYNSETS[1], SYNSETS[4]], 2)
    (shift,) = shifts("imagenet-a", str(tmp_path / "images"), write_labels(tmp_path / "labels"), size=4)
    assert shift.validation_size() == 2


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "2", "1"], ["1", "2", "9", "10"]),
        (["010", "9", "1", "01"], ["01", "1", "9", "010"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["ant", "Zebra", "zoo", "Ant"], ["Ant", "Zebra", "ant", "zoo"]),
        (["-1", "0", "1"], ["-1", "0", "1"]),
        (["٣", "1"], ["1", "٣"]),
    ],
)
def test_labels_follow_one_order(names, order):
    """By value only where all are numbers in digits; 1 and 01, alike in value, in the order of their characters."""
    assert in_order(names) == in_order(reversed(names)) == order


def test_numeric_folders_have_one_label_in_shards_and_in_stored_corruptions(tmp_path):
    write_images(tmp_path / "images", {f"{label}/a.png": label for label in (0, 2, 10, 11)})
    write_images(tmp_path / "c" / "fog" / "1", {f"{label}/a.png": label for label in (0, 2, 10, 11)})
    assert stored(tmp_path / "c", 4, 4).at("fog", 1).names() == ClassFolders(str(tmp_path / "images"), "x").classes


def test_a_folder_of_splits_is_not_read_as_classes(tmp_path):
    write_images(tmp_path, {"train/cat/a.png": 1, "val/cat/a.png": 2})
    with pytest.raises(DataError, match=r"holds train and val, which are parts of a data set .* Name one of them"):
        class_folders(tmp_path)


def test_a_class_whose_name_is_no_utf8_is_refused(tmp_path):
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"class folder caf\\xe9 is no UTF-8, .* Rename it"):
        class_folders(tmp_path)


# -- images -----------------------------------------------------------------------------------------


def test_what_is_passed_over_is_said_with_its_name(tmp_path, capsys):
    write_images(tmp_path / "images", {"cat/a.png": 1, "cat/deep/er/b.png": 2, "cat/called.png/c.png": 3})
    cat = tmp_path / "images" / "cat"
    (cat / "gone.png").symlink_to(tmp_path / "nowhere")
    (cat / "round.png").symlink_to(cat / "round.png")
    (cat / "self").symlink_to(cat)
    os.mkfifo(cat / "pipe.png")
    for name in ("notes.txt", "more.TXT", "drawing.psd", "bare"):
        (cat / name).write_bytes(b"x")
    with open(os.fsencode(cat) + b"/caf\xe9.png", "wb") as file:
        file.write(png(grey(1)))
    (tmp_path / "images" / "dog").mkdir()
    assert make(tmp_path / "images", tmp_path / "out", "--processes", 1) == 0
    said = capsys.readouterr().err
    for line in (
        "a class without an image: dog",
        "a link to nothing: cat/gone.png (2 in all)",
        "a link to a folder that it lies in: cat/self",
        "no file, but a device or a pipe: cat/pipe.png",
        r"a name that is no UTF-8: cat/caf\xe9.png",
        "no image that is read here (.txt): cat/more.TXT (2 in all)",
        "no image that is read here (.psd): cat/drawing.psd",
        "no image that is read here (a name without an ending): cat/bare",
        "a folder that is called like an image: cat/called.png",
    ):
        assert f"left out, {line}\n" in said, line
    assert read_manifest(tmp_path / "out")["splits"]["train"]["samples"] == 3
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["cat", "dog"]


def test_links_to_folders_and_files_are_followed(tmp_path):
    write_images(tmp_path / "far", {"cat/a.png": 1, "one.png": 2})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").symlink_to(tmp_path / "far" / "cat")
    (tmp_path / "images" / "dog").mkdir()
    (tmp_path / "images" / "dog" / "b.png").symlink_to(tmp_path / "far" / "one.png")
    assert ClassFolders(str(tmp_path / "images"), "x").listing() == ["cat/a.png", "dog/b.png"]


def test_an_evaluation_is_refused_where_an_image_cannot_be_read(tmp_path):
    """A figure would be over fewer images than lie there."""
    labels = write_labels(tmp_path / "labels")
    write_images(tmp_path / "images", {f"{SYNSETS[1]}/a.png": 1})
    (tmp_path / "images" / SYNSETS[1] / "README.txt").write_text("what this is")
    (shift,) = shifts("imagenet-a", str(tmp_path / "images"), labels, size=4)
    assert shift.validation_size() == 1
    (tmp_path / "images" / SYNSETS[1] / "b.png").symlink_to("nowhere")
    (shift,) = shifts("imagenet-a", str(tmp_path / "images"), labels, size=4)
    with pytest.raises(DataError, match=rf"{SYNSETS[1]}/b.png is a link to nothing \(1 such in all\)"):
        shift.check()


@pytest.mark.parametrize("ending", [ending for ending in IMAGES if ending != "ras"])  # which Pillow does not write
def test_every_format_that_is_called_an_image_is_read(tmp_path, ending):
    Image.init()
    form = Image.registered_extensions().get(f".{ending}")
    if form not in Image.SAVE:  # this build of Pillow lacks it
        return
    image = Image.new("1" if ending == "pbm" else "L" if ending == "pgm" else "RGB", (8, 8), "white")
    image.save(tmp_path / f"a.{ending}", form)
    found = np.asarray(decode((tmp_path / f"a.{ending}").read_bytes(), 3))
    assert found.shape == (8, 8, 3)
    assert (found >= 253).all()


def test_no_program_is_started_by_a_picture():
    """Pillow hands an .eps to Ghostscript, whatever it is called."""
    assert not {"EPS", "WMF", "PDF", "MPEG"} & set(FORMATS)
    with pytest.raises(Undecodable, match="UnidentifiedImageError"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", 3)


def test_all_formats_are_stored_and_read_again(tmp_path):
    from tests.data.test_make_shards import read

    (tmp_path / "images" / "a").mkdir(parents=True)
    for level, ending in enumerate(("png", "bmp", "tif", "ppm", "GIF", "webp")):
        image = Image.new("RGB", (8, 8), (20 * level,) * 3)
        image.save(tmp_path / "images" / "a" / f"{level}.{ending}", **({"lossless": True} if ending == "webp" else {}))
    make(tmp_path / "images", tmp_path / "out", "--processes", 1)
    assert read(tmp_path / "out", 1) == {20 * level: 0 for level in range(6)}


# -- grey of more than 8 bits -----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, ending, channels):
    """round(v / 257): 0 to 65535 in steps of 257 are the 256 levels, and half a step more goes up."""
    ramp = (np.arange(256) * 257).astype(np.uint16).reshape(16, 16)
    for values, shift in ((ramp, 0), (ramp[:15] + 129, 1), (ramp[:15] + 128, 0)):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(values).save(path)
        expected = values.astype(int) // 257 + shift
        found = np.asarray(decode(path.read_bytes(), channels))
        assert np.array_equal(found if channels == 1 else found[..., 2], expected), (ending, shift)


def test_numbers_without_a_known_range_are_refused(tmp_path):
    for values, said in ((np.ones((4, 4), np.float32), "fractions"), (np.ones((4, 4), np.int32), "32-bit numbers")):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(Undecodable, match=f"holds {said} of no known range"):
            decode((tmp_path / "a.tif").read_bytes(), 1)


# -- names ------------------------------------------------------------------------------------------


def test_a_key_is_a_path_without_its_ending_and_without_dots(tmp_path):
    assert [key_of(name) for name in ("cat/a.b.png", "v1.0/a.JPEG", "a", "a.txt")] == [
        "cat/a_b",
        "v1.0/a",
        "a",
        "a_txt",
    ]
    write_images(tmp_path, {"cat/a.png": 1, "cat/b.png": 2, "dog/x/a.png": 3})
    (tmp_path / "cat" / "a.jpg").write_bytes(b"")
    files = images_below(tmp_path).files
    assert keys_of(files, tmp_path) == ["cat/a_jpg", "cat/a_png", "cat/b", "dog/x/a"]
    write_images(tmp_path, {"cat/a.jpg.png": 4})
    with pytest.raises(DataError, match="would both be called cat/a_jpg in a shard"):
        keys_of(images_below(tmp_path).files, tmp_path)


def test_two_images_of_one_name_are_two_samples(tmp_path):
    from tests.data.test_make_shards import read

    write_images(tmp_path / "images", {"cat/a.png": 10, "cat/a.b.png": 30, "cat/a_b.png": 40})
    (tmp_path / "images" / "cat" / "a_b.png").rename(tmp_path / "images" / "cat" / "a.b.PNG")
    Image.new("RGB", (8, 8), (20, 20, 20)).save(tmp_path / "images" / "cat" / "a.bmp")
    (tmp_path / "images" / "cat" / "a.b.PNG").unlink()
    make(tmp_path / "images", tmp_path / "out", "--processes", 1)
    assert read(tmp_path / "out", 1) == {10: 0, 20: 0, 30: 0}


KEYS = ["cat/0", "cat/1", "dog/0", "dog/2_x"]


def listed(tmp_path, text: str | bytes, keys=KEYS) -> list[int]:
    path = tmp_path / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return chosen(path, keys, "val.tar").tolist()


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("cat/1.png\ncat/0.png\n", [1, 0]),
        ("dog/0\n\n  cat/0  \n", [2, 0]),
        ("1.png\n2.x.JPEG", [1, 3]),
        ("val/dog/0.png\n./cat/0.png", [2, 0]),
        ("dog\\0.png\r\ncat\\1.png\r\n", [2, 1]),
        (b"\xef\xbb\xbfcat/0.png\n", [0]),
        ("cat/0.png\n".encode("utf-16"), [0]),
    ],
)
def test_a_name_in_a_list_means_its_path(tmp_path, text, samples):
    assert listed(tmp_path, text) == samples


def test_keys_without_folders_are_found_by_their_names(tmp_path):
    assert listed(tmp_path, "n01/a.JPEG\nval/n02/b.JPEG", ["b", "a"]) == [1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.png", r"'0.png' is the name of 2 images, cat/0 and dog/0 among them"),
        ("cat/0.png\ncat/0.png", "names an image twice: 'cat/0.png' and 'cat/0.png'"),
        ("1.png\ncat/1.jpg", "names an image twice: '1.png' and 'cat/1.jpg'"),
        ("cow/0.png", "lists 1 images, and 1 of them are not in val.tar, 'cow/0.png' first"),
        ("", "the list of images .* is empty"),
        (b"caf\xe9.png", r"is no UTF-8 \(line 1\): save it in that encoding"),
        (b"\x1f\x8b\x08", "is gzip"),
        (b"a\0b", "is no text, but bytes"),
    ],
)
def test_a_list_that_is_none_or_says_nothing_clear_is_refused(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        listed(tmp_path, text)
