"""Without Ray: ranks that torchrun starts, each `python -m robust_train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RUN = """
name: ranks
data: {{use: digits, folder: {folder}/digits}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective: {{use: plain}}
updates: 3
batch: 32
folder: {folder}/run
optimiser: {{name: sgd, lr: 0.05}}
validate: {{images: 32}}
checkpoint: {{every: 2}}
records: {{wandb: "off", progress: "off"}}
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_two_ranks_of_torchrun_are_one_run(tmp_path: Path) -> None:
    """One folder, one table, the updates of one run; and launch.train among them is refused, not started twice."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(folder=tmp_path), encoding="utf-8")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*ranks, "-m", "robust_train", str(path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s ┃") == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("lr" in row for row in rows) == 3  # an update once, not once a rank
    environment["WORLD_SIZE"] = "2"
    refused = subprocess.run(
        [sys.executable, "-m", "launch.train", str(path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "torchrun ... -m robust_train" in refused.stderr
