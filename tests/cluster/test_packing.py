"""A sweep on a local Ray cluster: packed, a run killed, another that cannot be done, and the same command again.

A shorter sweep with a run that cannot be done is in test_uses.py; a run's own kill in test_launch.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from started_run import DEMO, SMALL, UPDATES, command, launched, metrics, until

from robust_train.launch.packing import LOG
from robust_train.read import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ALONE = ["cluster.devices=1", "cluster.cpus=0.5"]
MEMBERS = {
    "steady": {"settings": ALONE, "index": [5]},
    "broken": {"settings": [*ALONE, "on_nonfinite.limit=1e-9"], "index": [6]},  # any loss is too large
    "twin": {"settings": ["cluster.devices=2", "cluster.cpus=0.5"], "index": [7]},
}


def written(path: Path, members: dict[str, object]) -> Path:
    sweep = {"run": str(DEMO), "folder": "study", "settings": SMALL, "members": members, "retries": 1}
    path.write_text(yaml.write(sweep), encoding="utf-8")
    return path


def words(sweep: Path) -> list[str]:
    return [sys.executable, "-m", "launch.sweep", str(sweep)]


def test_a_sweep_survives_a_kill_and_a_run_that_cannot_be_done(tmp_path: Path) -> None:
    """Three runs at once on two CPUs: one killed, one refused, one on two devices. Then again, without the bad one."""
    study = tmp_path / "study" / "seed0"
    steady, twin = study / "steady", study / "twin"
    sweep = written(tmp_path / "sweep.yaml", MEMBERS)
    with (
        launched(tmp_path / "undisturbed", "name=steady", "seed=5", *ALONE, debug=True) as undisturbed,
        command(words(sweep), study, tmp_path / "sweep", tmp_path) as run,
    ):
        until(lambda: len(metrics(steady)) >= 6 or run.process.poll() is not None, "an update")
        run.leading(steady).kill()
        assert run.wait() == 1, run.err
        assert undisturbed.wait() == 0, undisturbed.err

    said = run.err.splitlines()
    starts = "twin: started", "steady: failed at update", "steady: done", "broken: failed at update 0"
    places = {start: next(i for i, line in enumerate(said) if line.startswith(f"seed0/{start}")) for start in starts}
    assert places["twin: started"] < places["steady: done"], "they were at work at once"
    assert "its process was killed" in said[places["steady: failed at update"]]
    assert "(try 1 of 2)" in said[places["broken: failed at update 0"]]
    assert "given up" in said[places["broken: failed at update 0"]]
    assert "Traceback" not in run.err + run.out
    assert "raylet" not in run.err + run.out

    assert metrics(steady) == metrics(tmp_path / "undisturbed")
    assert len(metrics(twin)) == len(metrics(steady))
    assert '"world": 2' in (twin / "timing.jsonl").read_text()
    for folder in (steady, twin):
        assert f"update {UPDATES}/{UPDATES}" in (folder / LOG).read_text()
    assert [line[:3] for line in (steady / LOG).read_text().splitlines()].count("-- ") == 2
    kept = json.loads((tmp_path / "study" / "sweep.json").read_text())
    assert set(kept["runs"]) == {"seed0/steady", "seed0/twin"}
    assert "above" in kept["failed"]["seed0/broken"]
    assert "seed0/broken" in run.out

    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    whole = written(tmp_path / "whole.yaml", {name: MEMBERS[name] for name in ("steady", "twin")})
    with command(words(whole), study, tmp_path / "again", tmp_path) as again:
        assert again.wait() == 0, again.err
    assert "all 2 runs were done before" in again.err
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before
