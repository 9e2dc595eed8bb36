"""Law 3: any fault costs time, never results. metrics.jsonl is the one that an undisturbed run would have written."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded_run import QUIET, Expected, Toy, metrics, work

from robust_train.nouns import Place
from robust_train.read.errors import CheckpointError
from robust_train.records import Records, jsonl


@pytest.fixture
def undisturbed(tmp_path: Path) -> bytes:
    work(Toy(str(tmp_path / "undisturbed")))
    return (tmp_path / "undisturbed" / "metrics.jsonl").read_bytes()


def test_a_line_has_the_update_first_then_sorted_keys_and_floats_by_repr():
    assert jsonl.line({"loss": 0.1 + 0.2, "update": 3, "accuracy/pgd20": 1.0, "images": 7}) == (
        b'{"update": 3, "accuracy/pgd20": 1.0, "images": 7, "loss": 0.30000000000000004}\n'
    )


def test_numbers_that_json_does_not_have_are_text_and_come_back():
    text = jsonl.line({"a": math.nan, "b": math.inf, "c": -math.inf, "d": torch.tensor(math.nan)})
    assert json.loads(text) == {"a": "nan", "b": "inf", "c": "-inf", "d": "nan"}
    back = jsonl.parse(text)
    assert math.isnan(back["a"])
    assert (back["b"], back["c"]) == (math.inf, -math.inf)


@given(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.integers(-(2**63), 2**63)))
def test_a_line_reads_back_to_the_bit_and_does_not_depend_on_the_order_of_its_keys(record):
    text = jsonl.line(record)
    back = jsonl.parse(text)
    assert back == record
    assert all(math.copysign(1, back[key]) == math.copysign(1, record[key]) for key in record)
    assert text.count(b"\n") == 1
    assert jsonl.line(dict(reversed(record.items()))) == text


def test_tensors_and_numpy_numbers_are_floats_exactly():
    value = torch.tensor(0.1)
    assert jsonl.parse(jsonl.line({"a": value, "b": np.float32(0.1)})) == {"a": value.item(), "b": value.item()}


def test_a_file_cut_anywhere_by_a_kill_ends_as_if_nothing_had_happened(tmp_path, undisturbed):
    """Every byte after the last whole checkpoint is a place to die at, the middle of a line included."""
    run = Toy(str(tmp_path / "run"), updates=12)
    path, saved = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoint.json"
    work(run)
    whole, (update, closed) = path.read_bytes(), json.loads(saved.read_text())
    assert update == 10
    assert closed["bytes"] < len(whole) - 100
    for size in range(closed["bytes"], len(whole) + 1):
        path.write_bytes(whole[:size])
        work(run)
        assert path.read_bytes() == whole


def test_without_the_checkpoints_word_the_lines_of_an_update_and_later_ones_are_dropped(tmp_path):
    run = Toy(str(tmp_path))
    work(run)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with Records(run, Place()) as records:
        records.resume(23)
        kept = jsonl.read(tmp_path / "metrics.jsonl")
    assert max(row["update"] for row in kept) == 22
    assert whole.startswith((tmp_path / "metrics.jsonl").read_bytes())


def test_a_first_line_without_resume_replaces_what_was_said_of_its_update(tmp_path):
    run = Toy(str(tmp_path))
    work(run)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with Records(run, Place()) as records:
        records.add(run.updates, {"accuracy/clean": 0.5})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_rollback_while_running_drops_the_lines_of_the_updates_that_are_redone(tmp_path):
    with Records(Toy(str(tmp_path)), Place()) as records:
        for update in (0, 1, 2, 3):
            records.add(update, metrics(update))
            if update == 1:
                closed = records.close_segment(2)
        records.resume(2, closed)
        records.add(2, metrics(2))
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(
        jsonl.line({"update": update, **metrics(update)}) for update in (0, 1, 2)
    )


@pytest.mark.cluster
def test_killed_at_random_moments_a_run_leaves_the_bytes_of_an_undisturbed_one(tmp_path, undisturbed):
    """SIGKILL until twelve kills have met a half-done file; then to the end."""
    run = Toy(str(tmp_path / "run"))
    path, saved = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoint.json"
    processes, chance, met, tries = multiprocessing.get_context("fork"), random.Random(0), 0, 0
    while met < 12:
        tries += 1
        assert tries < 500
        process = processes.Process(target=work, args=(run,))
        process.start()
        time.sleep(chance.uniform(0, 0.04))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        content = path.read_bytes() if path.exists() else b""
        met += content not in (b"", undisturbed)
        if content == undisturbed:
            saved.unlink(missing_ok=True)  # done before its kill: from the start again, over the lines that are there
    work(run)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == undisturbed


def test_a_file_that_is_not_the_checkpoints_is_refused_and_left_as_it_is(tmp_path):
    run = Toy(str(tmp_path))
    work(run)
    path = tmp_path / "metrics.jsonl"
    update, closed = json.loads((tmp_path / "checkpoint.json").read_text())
    altered = path.read_bytes().replace(b'"update": 3', b'"update": 4', 1)
    for content in (altered, altered[:50], b""):
        path.write_bytes(content)
        with Records(run, Place()) as records, pytest.raises(CheckpointError, match="Put the file back"):
            records.resume(update, closed)
        assert path.read_bytes() == content
    path.unlink()
    with Records(run, Place()) as records, pytest.raises(CheckpointError, match="Put the file back"):
        records.resume(update, closed)


def test_a_broken_line_inside_the_file_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(jsonl.line({"update": 0}) + b'{"upd\n' + jsonl.line({"update": 2}))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        jsonl.read(path)


def test_a_checkpoint_knows_the_bytes_and_the_checksum_so_far(tmp_path):
    import hashlib

    with Records(Toy(str(tmp_path)), Place()) as records:
        for update in range(7):
            records.add(update, metrics(update))
            closed = records.close_segment(update + 1)
            content = (tmp_path / "metrics.jsonl").read_bytes()
            assert closed == {
                "segment": "metrics.jsonl",
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }


def test_a_line_can_be_followed_as_soon_as_it_is_added(tmp_path):
    with Records(Toy(str(tmp_path)), Place()) as records:
        records.add(0, {"loss": 1.0})
        assert jsonl.read(tmp_path / "metrics.jsonl") == [{"update": 0, "loss": 1.0}]


def test_times_never_stand_in_metrics(tmp_path):
    with Records(Toy(str(tmp_path)), Place()) as records:
        with pytest.raises(ValueError, match="Records"):
            records.add(0, {"time/attack": 1.0})
        records.time(0, {"time/attack": 1.0, "images/s": 10.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_timing_goes_on_over_starts_and_each_start_is_told(tmp_path):
    for _ in range(2):
        work(Toy(str(tmp_path)))
        with (tmp_path / "timing.jsonl").open("ab") as file:
            file.write(b'{"update": 3, "ima')  # killed here
    rows = jsonl.read(tmp_path / "timing.jsonl")
    assert [sorted(row) for row in rows if "start" in row] == [
        ["device", "host", "python", "start", "torch", "world"]
    ] * 2
    assert [row["update"] for row in rows if "update" in row] == list(range(40))
    assert all("memory/host" in row for row in rows if "update" in row)


def test_images_and_their_rate_are_counted_from_updates_not_from_lines(tmp_path, monkeypatch):
    """Six updates of 64 images, one second each; two of them have a second line, the evaluation takes an hour."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    run = Toy(str(tmp_path), updates=6)
    with Records(run, Place()) as records:
        assert records.totals() == {}
        records.expect(Expected(batch=64))
        assert records.totals() == {"images": 0, "seconds": 0.0}
        for update in range(6):
            clock.now += 1
            records.add(update, {"loss": 1.0})
            if update % 3 == 0:
                records.add(update, {"accuracy/pgd20": 0.5})
        clock.now += 3600
        records.add(run.updates, {"accuracy/clean": 0.5})
        assert records.totals() == {"images": 384, "seconds": 6.0, "images/s": 64.0}
    timed = [row for row in jsonl.read(tmp_path / "timing.jsonl") if "update" in row]
    assert [(row["update"], row["time/run"]) for row in timed] == [(update, update + 1.0) for update in range(6)]
    assert [(row["time/update"], row["images/s"]) for row in timed[1:]] == [(1.0, 64.0)] * 5


def test_other_ranks_write_nothing(tmp_path):
    with Records(Toy(str(tmp_path / "run")), Place(rank=1, world=2)) as records:
        records.resume(0)
        records.add(0, {"loss": 1.0})
        records.time(0, {"images/s": 1.0})
        records.summary({"images": 1})
        records.say("nothing")
        records.expect(Expected())
        assert records.totals() == {}
        assert records.picture(0, "attack", torch.zeros(1, 4, 4)) is None
        assert records.close_segment(1) == {}
    assert not (tmp_path / "run").exists()


def test_the_summary_is_merged_and_whole(tmp_path):
    with Records(Toy(str(tmp_path)), Place()) as records:
        records.summary({"accuracy/clean": 0.5, "images": 360})
        records.summary({"accuracy/clean": torch.tensor(0.75), "loss": math.nan, "attack": {"steps": 50}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "accuracy/clean": 0.75,
        "images": 360,
        "loss": "nan",
        "attack": {"steps": 50},
    }
    assert not list(tmp_path.glob(".summary*"))


def test_a_full_disk_names_the_file(tmp_path):
    """/dev/full is a disk without room."""
    lines = jsonl.Lines(tmp_path / "metrics.jsonl")
    lines.open()
    lines.close()
    lines._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(OSError, match=r"metrics\.jsonl") as caught:
        lines.append({"update": 0})
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    lines.close()


def test_every_is_at_least_one():
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        type(QUIET)(every=0)
    with pytest.raises(ValueError, match="wandb='on' is none of auto, offline, online, off"):
        type(QUIET)(wandb="on")  # type: ignore[arg-type]
