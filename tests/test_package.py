"""What is installed: a wheel of this project works from any folder, and takes no name but its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from robust_train.read.paths import run_file
from robust_train.tools.programs import PROGRAMS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SMALL = [
    "updates=2",
    "batch=64",
    "validate.images=16",
    "validate.final=null",
    "records.pictures=false",
    "records.wandb=off",
    "folder=run",
]

SCRIPT = """import sys
import robust_train.tools.eval as judge
from robust_train.launch import cluster
from robust_train.tools.programs import main
if __name__ == "__main__":
    print(cluster.ROOT, cluster.shipped())  # Ray's workers are sent no tree
    print(judge.__file__, flush=True)
    sys.exit(main())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel of this tree holds, and nothing else."""
    tree = tmp_path_factory.mktemp("tree") / "project"  # a build leaves its own files in the tree that it is made of
    left = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("robust_train", "launch", "tools", "configs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=left)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    made = ran([sys.executable, "-c", code, str(tree.parent)], tree, {})
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(tree.parent / made.splitlines()[-1]) as wheel:
        wheel.extractall(folder)
    return folder


def ran(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a command says in a folder, where it ends well."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_takes_no_name_but_its_own_and_holds_what_the_tree_holds(site: Path) -> None:
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"robust_train"}
    kinds = (".py", ".yaml", ".j2", ".sh", ".typed")
    there = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    for name in ("robust_train", "robust_train/launch", "robust_train/tools", "robust_train/configs"):
        home = (ROOT / name).resolve()  # rglob follows no links
        files = [path for path in home.rglob("*") if path.suffix in kinds or path.name == "Dockerfile"]
        missing = {f"{name}/{path.relative_to(home).as_posix()}" for path in files} - there
        assert files
        assert not missing


@pytest.mark.slow
def test_a_wheel_trains_the_demo_and_answers_from_any_folder(site: Path, tmp_path: Path) -> None:
    """Programs by their names and by `-m`, with this tree out of sight; a run's file is found in the package."""
    only = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}  # before an editable installation of the tree
    train = [sys.executable, "-m", "robust_train.launch.train", "configs/demo.yaml", "--debug", *SMALL]
    ran(train, tmp_path, only)
    assert (tmp_path / "run" / "summary.json").is_file()
    script = tmp_path / "robust-eval"  # what pip writes, and more to see
    script.write_text(SCRIPT)
    said = ran([sys.executable, str(script), "--help"], tmp_path, only)
    assert said.startswith(f"{site.resolve()} {{}}\n{site / 'robust_train' / 'tools' / 'eval.py'}\n")
    assert "usage: python -m tools.eval" in said


def test_every_program_is_a_command_of_a_module_that_is_there() -> None:
    assert PROJECT["scripts"] == dict.fromkeys(PROGRAMS, "robust_train.tools.programs:main")
    for module in PROGRAMS.values():
        assert callable(import_module(f"robust_train.{module}").main)


def test_folders_of_the_tree_are_parts_of_the_package_by_links_and_modules_have_one_name() -> None:
    for name in ("launch", "tools", "configs"):
        link = ROOT / "robust_train" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
    tops = {"launch", "tools"}
    assert not {name for name in sys.modules if name.partition(".")[0] in tops}


def test_a_run_file_is_where_it_is_named_else_in_the_package(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_file("configs/demo.yaml").read_bytes() == (ROOT / "configs" / "demo.yaml").read_bytes()
    assert run_file("configs/no-such.yaml") == Path("configs/no-such.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("own")
    assert run_file("configs/demo.yaml") == Path("configs/demo.yaml")
