"""A run as a job of a Ray cluster: submitted, followed, stopped, submitted again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from started_run import ROOT, SMALL, UPDATES, Started, command, environment, metrics, until

from tests.uses.lab import lab

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))
SETTINGS = [*SMALL, "folder=runs/job"]


@dataclass
class Head:
    """A Ray cluster of one node, started as by hand."""

    address: str
    temporary: Path
    started: Started

    def ray(self, *words: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command of Ray's, to its end."""
        call = [RAY, "job", words[0], "--address", self.address, *words[1:]]
        open_to_all = environment(RAY_AUTH_MODE="disabled")
        return subprocess.run(call, cwd=where, env=open_to_all, capture_output=True, text=True, timeout=300)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head of two CPUs on this machine's own ports; it is ended by its process number."""
    gcs, dashboard = free_ports(2)
    log = tmp_path_factory.mktemp("head") / "head"
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # names of sockets must stay short
    words = [
        *[RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", f"--temp-dir={temporary}"],
        *[
            "--node-ip-address=127.0.0.1",
            f"--port={gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
        ],
        *["--dashboard-agent-listen-port=0", "--object-store-memory=134217728"],
    ]
    with command(words, temporary, log, temporary, RAY_AUTH_MODE="disabled") as process:
        there = Head(f"http://127.0.0.1:{dashboard}", temporary, process)
        until(lambda: process.process.poll() is not None or there.ray("list").returncode == 0, "the head")
        assert process.process.poll() is None, process.err
        yield there
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree with what one has after a while: data, runs, a history, caches."""
    tree = tmp_path_factory.mktemp("tree") / "work"
    for name in ("robust_train", "launch", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("data/train.tar", "runs/old/weights", ".git/HEAD", ".venv/bin/python", "launch/__pycache__/x.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("not for the cluster")
    return tree


@pytest.mark.long
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(
    head: Head, tree: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """`ray job submit`, its logs and `ray job stop`; then launch.submit, to the same bytes as an undisturbed run."""
    folder = tmp_path / "runs" / "job"
    job = ["python", "-m", "launch.train", "configs/demo.yaml", *SETTINGS]
    kept = json.dumps({"env_vars": {"ROBUST_TRAIN_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}})

    def submitted() -> bool:
        sent = head.ray(
            *["submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", "--runtime-env-json", kept],
            *["--", *job],
            where=tree,
        )
        assert sent.returncode == 0 or "No available agent" in sent.stdout + sent.stderr, sent.stdout + sent.stderr
        return sent.returncode == 0

    until(submitted, "a head that accepts jobs")
    until(lambda: len(metrics(folder)) >= 6, "six updates")
    head.started.leading(folder).suspend()  # it cannot reach its end while it is looked at
    logs = head.ray("logs", "first").stdout
    assert f"everything is written to {folder}" in logs
    assert f"update 1/{UPDATES}" in logs
    assert head.ray("stop", "first").returncode == 0
    assert "was stopped" in head.ray("status", "first").stdout
    assert 6 <= len(metrics(folder)) < len(metrics(undisturbed))

    words = [sys.executable, "-m", "launch.submit", "configs/demo.yaml", *SETTINGS, "--address", head.address]
    path = {"PYTHONPATH": str(tree), "RAY_AUTH_MODE": "disabled", "ROBUST_TRAIN_HOME": str(tmp_path)}
    with command([*words, "--env", "OMP_NUM_THREADS=1"], folder, tmp_path / "again", tree, **path) as again:
        assert again.wait() == 0, again.out + again.err
    assert f"update {UPDATES}/{UPDATES}" in again.out
    assert metrics(folder) == metrics(undisturbed)
    assert json.loads((folder / "summary.json").read_text())["updates"] == UPDATES


def test_a_job_finds_the_users_modules_in_the_working_directory(head: Head, tree: Path, tmp_path: Path) -> None:
    """`ray job submit --working-dir .` with my_lab in it: two ranks; they work in a folder where it is not."""
    path = lab(tmp_path)
    shutil.copytree(path.parent / "my_lab", tree / "my_lab")
    shutil.copy(path, tree / "half.yaml")
    kept = json.dumps({"env_vars": {"ROBUST_TRAIN_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}})
    job = ["python", "-m", "launch.train", "half.yaml", "cluster.devices=2", "cluster.cpus=0.5"]
    sent = head.ray("submit", "--working-dir", ".", "--runtime-env-json", kept, "--", *job, where=tree)
    shutil.rmtree(tree / "my_lab")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert (tmp_path / "run" / "checkpoints" / "00000004" / "uses" / "my_lab" / "half.py").exists()


def test_a_job_whose_modules_lie_outside_of_the_tree_is_not_sent(tree: Path, tmp_path: Path) -> None:
    path = lab(tmp_path)
    shutil.copy(path, tree / "configs" / "outside.yaml")
    words = [sys.executable, "-m", "launch.submit", "configs/outside.yaml", "--address", "http://127.0.0.1:9"]
    where = {"PYTHONPATH": os.pathsep.join([str(tree), str(path.parent)])}
    with command(words, tmp_path, tmp_path / "outside", tree, **where) as run:
        assert run.wait() == 2, run.out + run.err
    assert f"uses: a module of the run lies in {path.parent}" in run.err


def test_a_job_of_bad_input_ends_with_its_message_and_exit_code_2(head: Head, tree: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launch.submit", "configs/demo.yaml", *SETTINGS, "cluster.devices=64"]
    path = {"PYTHONPATH": str(tree), "RAY_AUTH_MODE": "disabled", "ROBUST_TRAIN_HOME": str(tmp_path)}
    with command([*words, "--address", head.address], tmp_path / "runs/job", tmp_path / "bad", tree, **path) as run:
        assert run.wait() == 2, run.out + run.err
    assert "the cluster has 2 CPUs (nodes: 1), the run wants 64" in run.out
    assert "Traceback" not in run.out


def test_data_runs_and_history_are_not_sent(head: Head, tree: Path, tmp_path: Path) -> None:
    """Runs after the others: what was sent lies unpacked in the head's folder."""
    sent = [path for path in head.temporary.glob("session_2*/runtime_resources/working_dir_files/*") if path.is_dir()]
    assert sent
    for copy in sent:
        assert (copy / "launch" / "train.py").exists()
        assert (copy / "robust_train" / "data" / "order.py").exists()  # code, though .gitignore names data/
        for name in ("data", "runs", ".git", ".venv", "launch/__pycache__/x.pyc"):
            assert not (copy / name).exists(), name
