"""The files that start Ray elsewhere: each is whole, and asks for what this project has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from robust_train.run import Run

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "launch" / "clusters"
RAY = next(line.split("==")[1] for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("ray=="))


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FILES / name).read_text(encoding="utf-8"))


def test_ray_up_s_file_is_what_ray_s_own_schema_asks_for() -> None:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    from ray.autoscaler._private import util  # where Ray has moved it, this fails: it is no reason to skip

    util.validate_config(util.prepare_config(read("ray-up.yaml")))


@pytest.mark.parametrize("name", ["kuberay-job.yaml", "kuberay-cluster.yaml"])
def test_kuberay_s_files_have_one_image_one_ray_and_one_folder(name: str) -> None:
    whole = read(name)
    spec = whole["spec"].get("rayClusterSpec", whole["spec"])
    assert spec["rayVersion"] == RAY
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    images = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    assert len(images) == 1
    for pod in pods:
        mounts = {mount["mountPath"] for box in pod["spec"]["containers"] for mount in box["volumeMounts"]}
        assert {"/shared", "/dev/shm"} <= mounts
        variables = {entry["name"] for box in pod["spec"]["containers"] for entry in box["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= variables
    workers = spec["workerGroupSpecs"][0]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    if whole["kind"] == "RayJob":
        words = whole["spec"]["entrypoint"].split()
        wanted = int(next(word.split("=")[1] for word in words if word.startswith("cluster.devices=")))
        assert wanted == workers["replicas"] * int(limits["nvidia.com/gpu"])
        settings = [word.strip("'") for word in words[4:]]
        settings = [word.replace("'", "") for word in settings]
        Run.load(ROOT / words[3], settings)  # the run is there, and takes these settings


def test_the_image_has_the_ray_that_the_project_was_tried_with() -> None:
    text = (FILES / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{RAY}-py311-gpu" in text
    for copied in re.findall(r"COPY --chown=\S+ (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in copied.split())


def test_shell_scripts_are_whole() -> None:
    script = str(FILES / "slurm.sh")
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_slurm_s_script_says_what_it_lacks() -> None:
    asked = subprocess.run(["bash", str(FILES / "slurm.sh")], capture_output=True, text=True)
    assert asked.returncode == 2
    assert "name a run" in asked.stderr
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    asked = subprocess.run(["bash", str(FILES / "slurm.sh"), "x.yaml"], capture_output=True, text=True, env=clean)
    assert asked.returncode
    assert "not inside a SLURM job" in asked.stderr
