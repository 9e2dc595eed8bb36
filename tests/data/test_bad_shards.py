"""What is wrong with the data is said once, clearly, with the remedy; what is allowed is skipped alike everywhere."""

from __future__ import annotations

import gzip
import io
from dataclasses import replace
from itertools import islice

import pytest
import torch
from numbered import CLASSES, SIZE, label_of, number_of, picture

from robust_train.data.shards import Shards
from robust_train.data.write import sample, write_shard
from robust_train.disk import write_json
from robust_train.nouns import Place
from robust_train.read.errors import DataError

READERS = [{"reader": "indexed"}, {"reader": "streams", "streams": 2, "window": 4}]


def shards(folder, **fields) -> Shards:
    return Shards(str(folder), classes=CLASSES, size=SIZE, channels=1, cache=str(folder / "cache"), **fields)


def run(data: Shards) -> None:
    """What a job does before and while it trains."""
    data.prepare()
    data.check()
    list(islice(data.batches(Place(), 4, 0, 0), 4))


def write(folder, faults: dict[int, dict], size: int = 12, suffix: str = ".tar"):
    """One shard of numbered samples, some changed, with its manifest."""
    folder.mkdir(parents=True, exist_ok=True)

    def samples():
        for n in range(size):
            one = sample(f"s{n:05d}", "png", picture(n), label_of(n)) | faults.get(n, {})
            yield {name: value for name, value in one.items() if value is not None}

    entry = write_shard(folder / f"part{suffix}", samples())
    write_json(folder / "manifest.json", {"splits": {"train": {"samples": size, "shards": [vars(entry)]}}})
    return folder / entry.file


NO_LABEL, NO_IMAGE, NO_PICTURE, TORN = {"cls": None}, {"png": None}, {"png": b"no picture"}, {"png": picture(5)[:40]}


@pytest.mark.parametrize("fields", READERS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (NO_LABEL, "has no .cls or .json entry"),
        (NO_IMAGE, "has no image"),
        (NO_PICTURE, "cannot be decoded"),
        (TORN, "cannot be decoded"),
        ({"cls": b"cat"}, "has a label that is no integer"),
    ],
)
def test_a_broken_sample_stops_a_run_that_allows_none(tmp_path, fields, fault, said):
    write(tmp_path, {5: fault})
    with pytest.raises(DataError, match=rf"shard part.tar: sample s00005 {said}.*allow them with data.missing=1"):
        run(shards(tmp_path, **fields))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("fields", READERS)
def test_the_next_good_sample_of_the_shard_stands_in_for_a_broken_one(tmp_path, fields, suffix):
    """5 and 6 are broken, so 7 stands in for both; 11 is the last, so 0 does, the shard's first."""
    write(tmp_path, {5: TORN, 6: NO_LABEL, 11: NO_IMAGE}, suffix=suffix)
    data = shards(tmp_path, missing=3, **fields)
    data.check()
    for world in (1, 2):
        shown, marked = {}, set()
        for rank in range(world):
            for batch in islice(data.batches(Place(rank, world), 4, 0, 0), 3):
                shown |= dict(zip(batch.sample.tolist(), number_of(batch.images), strict=True))
                marked |= set(batch.sample[batch.broken == 1].tolist())
                assert batch.targets.tolist() == [label_of(shown[s]) for s in batch.sample.tolist()]
        assert shown == {n: {5: 7, 6: 7, 11: 0}.get(n, n) for n in range(12)}
        assert marked == {5, 6, 11}


@pytest.mark.parametrize("fields", READERS)
def test_one_more_than_allowed_is_too_many(tmp_path, fields):
    write(tmp_path, {5: TORN, 6: TORN, 9: NO_LABEL})
    with pytest.raises(DataError, match=r"allow them with data.missing=3 \(now 2\)"):
        run(shards(tmp_path, missing=2, **fields))


@pytest.mark.parametrize("fields", READERS)
def test_a_shard_of_broken_samples_only_is_refused(tmp_path, fields):
    write(tmp_path, dict.fromkeys(range(12), TORN))
    with pytest.raises(DataError, match=r"shard part.tar holds no sample that can be decoded"):
        run(shards(tmp_path, missing=100, **fields))


@pytest.mark.parametrize("fields", READERS)
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_out_of_range_is_named(tmp_path, fields, label):
    write(tmp_path, {5: {"cls": str(label).encode()}})
    message = (
        rf"shard part.tar holds sample s00005 with label {label}, but labels run from 0 to 6. Correct data.classes"
    )
    with pytest.raises(DataError, match=message):
        run(shards(tmp_path, **fields))


def test_labels_out_of_range_are_found_before_any_work(tmp_path):
    write(tmp_path, {5: {"cls": b"99"}})
    with pytest.raises(DataError, match="label 99"):
        shards(tmp_path).check()


@pytest.mark.parametrize("fields", READERS)
def test_labels_may_be_json(tmp_path, fields):
    write(tmp_path, {n: {"cls": None, "json": b'{"label": %d}' % label_of(n)} for n in range(12)})
    run(shards(tmp_path, **fields))


@pytest.mark.parametrize("fields", READERS)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.6, 0.5, 0.1, 0.0])
def test_a_truncated_shard_is_refused_wherever_it_was_cut(tmp_path, fields, suffix, share):
    path = write(tmp_path, {}, suffix=suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"shard part\.tar"):
        run(shards(tmp_path, **fields))
    if fields["reader"] == "indexed":
        (tmp_path / "manifest.json").unlink()
        with pytest.raises(DataError, match=r"truncated or damaged; copy it again"):
            run(shards(tmp_path))


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    path = write(tmp_path, {})
    (tmp_path / "manifest.json").unlink()
    path.write_bytes(path.read_bytes()[: 1024 * 10])
    with pytest.raises(DataError, match="after 5 samples, the tar's end mark is missing"):
        shards(tmp_path).prepare()


@pytest.mark.parametrize("fields", READERS)
def test_an_empty_shard_is_refused(tmp_path, fields):
    write(tmp_path, {}, size=0)
    with pytest.raises(DataError, match=r"shard part.tar holds no samples"):
        run(shards(tmp_path, **fields))


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "part.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"shard part.tar cannot be read to its end"):
        shards(tmp_path).prepare()
    (tmp_path / "part.tar").write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(DataError, match=r"shard part.tar"):
        shards(tmp_path).prepare()


def test_a_shard_that_its_manifest_does_not_describe_is_refused(tmp_path):
    path = write(tmp_path, {})
    written = path.read_bytes()
    other = io.BytesIO(written)
    path.write_bytes(other.getvalue() + bytes(10240))
    with pytest.raises(DataError, match=r"but manifest.json beside it says .*--index"):
        shards(tmp_path).prepare()


def test_streams_notice_a_manifest_that_counts_wrongly(tmp_path):
    path = write(tmp_path, {})
    entry = {"file": "part.tar", "samples": 11, "bytes": path.stat().st_size, "sha256": ""}
    write_json(tmp_path / "manifest.json", {"splits": {"train": {"samples": 11, "shards": [entry]}}})
    with pytest.raises(DataError, match=r"holds more samples, but manifest.json beside it says 11"):
        run(shards(tmp_path, reader="streams", streams=1))
    with pytest.raises(DataError, match=r"holds 12 samples, but manifest.json beside it says 11"):
        run(shards(tmp_path))


def test_streams_ask_for_a_manifest(tmp_path):
    write(tmp_path, {})
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no manifest.json beside it .* tools.make_shards FOLDER --index"):
        shards(tmp_path, reader="streams").prepare()


def test_a_manifest_that_is_none_is_refused(tmp_path):
    write(tmp_path, {})
    for text in ("{", "[]", '{"splits": {"train": {}}}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="is no manifest of shards"):
            shards(tmp_path).prepare()


def test_a_manifest_opens_and_executes_nothing(tmp_path):
    """Addresses in a manifest are names to compare, never addresses to read."""
    write(tmp_path, {})
    bad = {"file": f"pipe:touch {tmp_path}/executed", "samples": 1, "bytes": 1, "sha256": ""}
    write_json(tmp_path / "manifest.json", {"splits": {"train": {"samples": 1, "shards": [bad]}}})
    run(shards(tmp_path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("absent.tar", "does not exist"),
        ("absent-{0..3}.tar", "does not exist"),
        ("*.tar", "matches no file"),
        (".", "holds no .tar or .tar.gz shard"),
    ],
)
def test_shards_that_are_not_there_are_named_with_the_remedy(tmp_path, monkeypatch, url, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"{said}.*tools.make_shards"):
        Shards(url, classes=2, size=4).prepare()


def test_a_command_that_fails_is_the_reason_given(tmp_path):
    data = Shards("pipe:echo half; exit 3", classes=2, size=4, cache=str(tmp_path))
    with pytest.raises(DataError, match=r"could not be read: .*exit 3"):
        data.prepare()


@pytest.mark.slow
def test_workers_say_the_same_of_bad_samples(tmp_path):
    write(tmp_path, {5: TORN, 6: {"cls": b"99"}})
    data = replace(shards(tmp_path, missing=1), workers=1)
    with pytest.raises(DataError, match=r"^shard part.tar holds sample s00006 with label 99"):
        list(islice(data.batches(Place(), 12, 0, 0), 1))
    write(tmp_path, {5: TORN}, size=13)
    with pytest.raises(DataError, match=r"^shard part.tar: sample s00005 cannot be decoded"):
        list(islice(replace(shards(tmp_path), workers=1).batches(Place(), 13, 0, 0), 1))


@pytest.mark.parametrize("fields", [{"classes": 0}, {"size": 0}, {"workers": -1}, {"crop": 0.0}, {"window": 0}])
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Shards(**{"train": "x.tar", "classes": 2, "size": 4} | fields)


def test_broken_marks_are_floats_of_the_batch(tmp_path):
    write(tmp_path, {})
    batch = next(shards(tmp_path).batches(Place(), 4, 0, 0))
    assert torch.equal(batch.broken, torch.zeros(4))
