"""A whole study on a local cluster: members, ensembles, students, judging; and again, with nothing left to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "sweep.seeds=[0]",
    "sweep.settings.updates=3",
    "sweep.settings.checkpoint.every=0",
    "sweep.settings.records.wandb=off",
    "sweep.settings.validate.images=32",
    "judge.images=32",
    "judge.chunk=16",
]


def study(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["configs/debug/v1-distill.yaml", f"sweep.folder={folder}", *SMALL, *more]
    command = [sys.executable, "-m", "launch.distill", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_study_goes_through_all_stages_and_does_none_twice(tmp_path: Path):
    folder = tmp_path / "study"
    first = study(folder)
    assert first.returncode == 0, first.stderr
    tree = json.loads((folder / "study.json").read_text())
    assert set(tree["robustness"]) == {
        f"seed0/{name}"
        for name in ("standard", "low-sf", "plain-0", "plain-1", "variants", "plain-x2", "student", "student-of-plain")
    }
    assert all(len(one["cells"]) == 15 for one in tree["robustness"].values())
    assert tree["networks"]["student"]["accuracy"]["noise"]["seeds"] == 1
    assert (folder / "study.png").read_bytes().startswith(b"\x89PNG")
    objective = (folder / "seed0" / "student" / "run.yaml").read_text()
    assert "use: distill" in objective
    assert "variants.yaml" in objective

    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = study(folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == kept
    assert json.loads((folder / "study.json").read_text())["robustness"] == tree["robustness"]
