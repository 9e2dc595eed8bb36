"""examples/add_my_own_method.py does what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["updates=4", "batch=32", "objective.attack.steps=1", "records={wandb: 'off', progress: 'off'}"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_method_of_ones_own_trains_and_is_attacked(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "add_my_own_method.py"), "runs/half", *SMALL]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/half/metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "loss/robust" in line] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "runs/half/eval.json").read_text())["figures"]
    assert any((tmp_path / "runs/half").rglob("uses/**/half.py"))
