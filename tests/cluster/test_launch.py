"""A run on a local Ray cluster: the numbers of debug mode, and faults that cost time only."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from started_run import DEMO, SMALL, UPDATES, launched, metrics, records, until

from robust_train import job
from robust_train.engines.deepspeed import DeepSpeedEngine
from robust_train.nouns import Place
from robust_train.run import Run
from tests.ranks import on_ranks

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KILL_AT = 6  # lines of metrics.jsonl: the checkpoint of update 4 is there, the one of update 8 is not


def by_hand(place: Place, folder: Path) -> None:
    """The same run on ranks that no Ray has started."""
    os.chdir(folder.parent)
    job.do(Run.load(DEMO, [*SMALL, f"folder={folder.name}"]), DeepSpeedEngine, place)


def test_two_ranks_under_ray_write_the_bytes_of_two_started_by_hand(undisturbed: Path, tmp_path: Path) -> None:
    """Law 2 of the launcher: it adds no number. And the summary is there."""
    on_ranks(2, by_hand, tmp_path / "run")
    assert len(metrics(undisturbed)) == UPDATES + 1
    assert metrics(undisturbed) == metrics(tmp_path / "run")
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["updates"] == UPDATES
    assert 0 <= summary["accuracy/clean"] <= 1


def test_debug_mode_begins_with_the_numbers_of_two_ranks_under_ray(undisturbed: Path, tmp_path: Path) -> None:
    """To 1e-5 over the first 3 updates, whose rate is near 0; tests/laws follow both engines far, in float64.

    Further on float32 cannot: where a ReLU's input comes within rounding of 0, a processor's kernels decide its slope.
    """
    with launched(tmp_path / "debug", debug=True) as plain:
        assert plain.wait() == 0, plain.err
    pairs = list(zip(records(undisturbed), records(tmp_path / "debug"), strict=True))
    for ray, debug in pairs[:3]:
        assert ray == pytest.approx(debug, rel=1e-5, abs=1e-6)


def test_a_rank_that_is_killed_costs_time_and_no_byte(undisturbed: Path, tmp_path: Path) -> None:
    """Law 3, and what the user reads of it: the run goes on by itself."""
    with launched(tmp_path / "run") as run:
        until(lambda: run.updates() >= KILL_AT, "an update")
        run.leading().kill()
        assert run.wait() == 0, run.err
    assert metrics(tmp_path / "run") == metrics(undisturbed)
    assert "a process failed (rank" in run.err
    assert f"update {UPDATES}/{UPDATES}" in run.err
    assert "Traceback" not in run.err


@pytest.mark.long
def test_a_launcher_that_is_killed_leaves_nothing_running_and_its_command_goes_on(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Law 3: SIGKILL to the whole process group, then the same command, at once."""
    folder = tmp_path / "run"
    with launched(folder) as run:
        until(lambda: run.updates() >= KILL_AT, "an update")
        processes = run.processes()
        run.signal(signal.SIGKILL)
        run.wait()
    assert len(processes) > 3, "the processes of Ray were not found"
    assert metrics(folder) != metrics(undisturbed)
    with launched(folder) as again:
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
        assert again.wait() == 0, again.err
    assert metrics(folder) == metrics(undisturbed)


def test_control_c_ends_a_run_with_one_line(tmp_path: Path) -> None:
    with launched(tmp_path / "run") as run:
        until(lambda: run.updates() >= 1, "an update")
        processes = run.processes()
        run.process.send_signal(signal.SIGINT)
        assert run.wait() == 130
        _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert "the same command goes on from the last checkpoint" in run.err
    assert "Traceback" not in run.err


def test_bad_input_that_only_a_rank_can_find_ends_the_run_at_once_with_its_message(tmp_path: Path) -> None:
    """Two ranks share 24 images in groups of 8: no retry, no traceback, exit code 2."""
    with launched(tmp_path / "run", "batch=24", "network.group=8", "cluster.restarts=100") as run:
        assert run.wait() == 2, run.err
    assert "batch=24 over 2 ranks" in run.err
    assert "a process failed" not in run.err
    assert "Traceback" not in run.err
    assert run.updates() == 0


@pytest.mark.long  # as test_room.py without Ray, and a job's in test_submit.py
def test_a_cluster_too_small_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with launched(tmp_path / "run", "cluster.devices=64", "batch=1024") as run:
        assert run.wait() == 2, run.err
    assert "the run wants 64: 64 processes" in run.err
    assert "Traceback" not in run.err
