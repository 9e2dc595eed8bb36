"""A user's own modules on a real cluster: two ranks, a sweep, and an evaluation elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from started_run import command, metrics, records

from robust_train.read import yaml
from tests.uses.lab import lab

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TWO = ["cluster.devices=2", "cluster.cpus=0.5"]


def test_two_ranks_train_the_users_objective_and_its_checkpoint_is_judged_elsewhere(tmp_path: Path) -> None:
    """Ray finds the modules by the working folder alone; the evaluation, on two processes, in the checkpoint alone."""
    path = lab(tmp_path)
    words = [sys.executable, "-m", "launch.train", path.name, *TWO]
    with command(words, tmp_path / "run", tmp_path / "ray", path.parent) as run:
        assert run.wait() == 0, run.err
    assert len(metrics(tmp_path / "run")) >= 4
    plain = [*words, "--debug", f"folder={tmp_path}/debug"]
    with command(plain, tmp_path / "debug", tmp_path / "plain", path.parent) as run:
        assert run.wait() == 0, run.err
    for one, other in zip(records(tmp_path / "run"), records(tmp_path / "debug"), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)

    checkpoint = tmp_path / "run" / "checkpoints" / "00000004"
    assert (checkpoint / "uses" / "my_lab" / "half.py").exists()
    path.parent.rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    judge = [sys.executable, "-m", "tools.eval", str(checkpoint), "--images", "40", "--steps", "2", "--checks", "0"]
    judge += ["--curve", "0", "--devices", "2", "--json", str(tmp_path / "eval.json")]
    with command(judge, tmp_path, tmp_path / "eval", tmp_path / "elsewhere") as run:
        assert run.wait() == 0, run.err
    report = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert report["figures"][1]["attack"]["attack"]["threat"] == {"use": "cube", "eps": 0.1}
    assert set(report["identity"]["uses"]) == {"my_lab/__init__.py", "my_lab/half.py", "my_lab/sizes.py"}


def test_a_sweep_packs_runs_of_the_users_objective_and_one_that_cannot_be_done_spoils_no_other(tmp_path: Path) -> None:
    path = lab(tmp_path)
    alone = ["cluster.cpus=0.5"]
    members = {"one": {"settings": alone}, "two": {"settings": TWO}}
    members["broken"] = {"settings": [*alone, "on_nonfinite.limit=1e-9"]}  # any loss is too large
    sweep = path.with_name("sweep.yaml")
    tree = {"run": path.name, "folder": "study", "members": members, "retries": 0}
    sweep.write_text(yaml.write(tree), encoding="utf-8")
    with command([sys.executable, "-m", "launch.sweep", sweep.name], tmp_path, tmp_path / "sweep", path.parent) as run:
        assert run.wait() == 1, run.err
    for name in ("one", "two"):
        assert (path.parent / "study/seed0" / name / "uses/my_lab/half.py").exists()
    kept = json.loads((path.parent / "study" / "sweep.json").read_text(encoding="utf-8"))
    assert set(kept["runs"]) == {"seed0/one", "seed0/two"}
    assert "above" in kept["failed"]["seed0/broken"]
    assert "Traceback" not in run.err + run.out


@pytest.mark.long  # as test_launch.py's bad input that only a rank can find
def test_a_module_that_raises_on_a_rank_ends_the_run_at_once(tmp_path: Path) -> None:
    """And not in the process that starts it: as where a node lacks what the module needs."""
    path = lab(tmp_path)
    half = path.parent / "my_lab" / "half.py"
    raises = "\nimport os\nif 'RAY_JOB_ID' in os.environ:\n    raise OSError('no such table')\n"
    half.write_text(half.read_text(encoding="utf-8") + raises, encoding="utf-8")
    words = [sys.executable, "-m", "launch.train", path.name, *TWO, "cluster.restarts=100"]
    with command(words, tmp_path / "run", tmp_path / "ray", path.parent) as run:
        assert run.wait() == 2, run.err
    assert "my_lab.half cannot be imported: OSError: no such table" in run.err
    assert "Traceback" not in run.err
