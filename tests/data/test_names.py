"""Small text files in the forms that people write: names of classes, summaries, truths. One message for others."""

from __future__ import annotations

import codecs
import json

import pytest

from robust_train.data.files.flat import FlatValidation
from robust_train.data.imagenet import LabelFiles
from robust_train.data.names import class_names, ids_of
from robust_train.data.shards import Shards
from robust_train.data.write import sample, write_shard
from robust_train.ownership import finished
from robust_train.read.errors import DataError
from robust_train.read.text import pairs_of, text_of
from tests.data.miniature import png, write_images, write_labels


@pytest.mark.parametrize(
    "known",
    [
        ["cat", "dog"],
        {"0": "cat", "1": "dog"},
        {"dog": 1, "cat": 0},
        {"dog": "1", "cat": "0"},
        [{"index": 1, "name": "dog"}, {"index": 0, "name": "cat"}],
        {"0": ["n1", "cat"], "1": ["n2", "dog"]},
        [{"wnid": "n1", "words": "cat, house cat"}, {"wnid": "n2", "words": "dog"}],
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_of_classes_are_read_in_every_form(tmp_path, known, encoding):
    (tmp_path / "classes.json").write_bytes(json.dumps(known).encode(encoding))
    assert class_names([str(tmp_path / "a.tar")], 2) == ["cat", "dog"]
    folders = ["n1", "n2"] if "n1" in json.dumps(known) else ["cat", "dog"]
    assert ids_of(tmp_path / "classes.json") == tuple(folders)


BAD = {
    "is no JSON": b"{",
    "is no JSON (maximum": b"[" * 100_000,
    "holds a str": b'"cat"',
    "cannot be read": b'[{"index": "first", "name": "cat"}]',
    "cannot be read (None is no name": b"[null]",
    "name class 0 twice": b'{"cat": 0, "dog": 0}',
    "are none": b"{}",
    "is empty": b" \n",
    "is no UTF-8 (line 2)": b'["a",\n"caf\xe9"]',
    "is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "is an HTML page": b"<!DOCTYPE html>",
    "is no text, but bytes": b"a\0b",
}


@pytest.mark.parametrize("said", BAD)
def test_a_classes_json_that_is_none_is_found_before_any_work(tmp_path, said):
    (tmp_path / "classes.json").write_bytes(BAD[said])
    write_shard(tmp_path / "a.tar", [sample("s", "png", png_of(), 0)])
    data = Shards(str(tmp_path / "a.tar"), classes=1, size=7, cache=str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        data.prepare()
    assert str(caught.value).startswith("the names of classes ")
    assert said in str(caught.value)


def png_of() -> bytes:
    from tests.data.miniature import grey

    return png(grey(1))


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"<html>"])
def test_a_summary_that_is_none_is_one_message(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)

    class Run:
        path, updates = tmp_path, 4

    with pytest.raises(DataError, match=r"the run's summary .*summary\.json .*Remove it: the same command goes on"):
        finished(Run())  # type: ignore[arg-type]


def test_label_files_get_the_same_treatment(tmp_path):
    labels = write_labels(tmp_path)
    (tmp_path / "imagenet_synsets.txt").write_bytes(codecs.BOM_UTF8 + (tmp_path / "imagenet_synsets.txt").read_bytes())
    assert len(LabelFiles(labels).synsets) == 12
    (tmp_path / "imagenet_class_index.json").write_text('{"0": 3}')
    with pytest.raises(DataError, match="WordNet id, name"):
        _ = LabelFiles(labels).names
    (tmp_path / "imagenet_real_labels.json").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"the label file .* is gzip"):
        _ = LabelFiles(labels).real


@pytest.mark.parametrize(
    "text",
    ["my cat.png dog\nb.png cat\n", "path,label\nmy cat.png,dog\nb.png,cat\n", "b.png\tcat\nmy cat.png\tdog\n"],
)
def test_a_ground_truth_may_name_images_with_spaces_and_be_a_table(tmp_path, text):
    write_images(tmp_path / "val", {"b.png": 1, "my cat.png": 2})
    (tmp_path / "truth.txt").write_text(text)
    source = FlatValidation(str(tmp_path / "val"), "val", None, str(tmp_path / "truth.txt"))
    assert source.listing() == ["b.png cat", "my cat.png dog"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b.png cat\ndog\n", "'dog' has one word, and other lines have more"),
        ("b.png,cat\nb.png,dog\nmy cat.png,cat\n", "says of b.png that it is cat, and that it is dog"),
    ],
)
def test_a_ground_truth_that_contradicts_itself_is_refused(tmp_path, text, said):
    write_images(tmp_path / "val", {"b.png": 1, "my cat.png": 2})
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        FlatValidation(str(tmp_path / "val"), "val", None, str(tmp_path / "truth.txt")).listing()


def test_a_table_with_quotes_and_further_columns_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('Label,note,File\ncat,"a, b","x,1.png"\n\ndog,,y.png\n')
    names = (("path", "file"), ("label",))
    assert pairs_of(path, "the list", "Mend it.", names) == [("x,1.png", "cat"), ("y.png", "dog")]
    path.write_text("a.png,cat\nb.png\n")
    with pytest.raises(
        DataError, match=r"the list .*: line 2 is no path and label \(1 columns, not 2\): 'b.png'. Mend"
    ):
        pairs_of(path, "the list", "Mend it.", names)


def test_a_file_that_is_not_there_or_is_a_folder_is_said(tmp_path):
    with pytest.raises(DataError, match=r"the list .*/gone does not exist. Mend it."):
        text_of(tmp_path / "gone", "the list", "Mend it.")
    with pytest.raises(DataError, match="cannot be read"):
        text_of(tmp_path, "the list", "Mend it.")
