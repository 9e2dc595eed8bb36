"""`uses:` in a run: a user's own modules, imported before the rest is read, and kept with what they made."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from robust_train import checkpoint
from robust_train.__main__ import main
from robust_train.models.blueprint import Blueprint, Recipe
from robust_train.models.small_cnn import SmallCNN
from robust_train.read import uses
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.run import Run
from robust_train.subject import Subject
from robust_train.trained import put

ROOT = Path(__file__).parents[2]


def test_a_run_names_what_a_module_of_the_users_registers(home: Path) -> None:
    run = Run.load("half.yaml")
    assert run.objective.use == "half"
    assert run.network.model.use == "lab-cnn"
    assert run.network.model.widths == (4, 8)
    assert run.objective.attack.threat.use == "cube"
    assert Run.load(run.dump()) == run
    assert set(uses.sources(run.uses)) == {"my_lab/__init__.py", "my_lab/half.py", "my_lab/sizes.py"}
    assert uses.roots() == [str(home / "lab")]


def test_the_command_line_may_name_them_too(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("half.yaml").read_text(encoding="utf-8").replace("uses: [my_lab.half]\n", "")
    Path("bare.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="'half' is no objective"):
        Run.load("bare.yaml")
    assert Run.load("bare.yaml", ["uses=[my_lab.half]"]).objective.use == "half"
    main(["bare.yaml", "uses=[my_lab.half]", "--list", "threats"])
    assert "The L-inf ball under the lab's own name." in capsys.readouterr().out


BROKEN = {
    "not_so.there": (
        "",
        r"half\.yaml: uses: there is no module not_so\.there \(not_so/there\.py was looked for in .*lab.* "
        r"PYTHONPATH\)\. Give the command in the folder that it is found from",
    ),
    "my_lab.gone": ("", r"there is no module my_lab\.gone"),
    "not_so": (
        "import not_installed_anywhere\n",
        r"not_so cannot be imported: ModuleNotFoundError: No module named 'not",
    ),
    "not_so ": ("", "'not_so ' is no module's name: write it as Python imports it"),
    "not_so.py": ("", "there is no module"),
    "not_so/x": ("", "'not_so/x' is no module's name"),
    "alone": (
        "x = 1\nraise SystemExit(3)\n",
        r"alone cannot be imported: SystemExit: 3\n    .*alone\.py:2: raise",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_module_that_is_missing_or_raises_is_one_message_with_the_remedy(name, home, capsys) -> None:
    text, words = BROKEN[name]
    if text:
        Path(f"{name}.py").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as error:
        main(["half.yaml", f"uses=['{name}']"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", r"not_so\.py:1: def f\(:"),
        ("x = 1 / 0\n", r"ZeroDivisionError: division by zero\n    .*not_so\.py:1: x = 1 / 0\nPut that right"),
        (
            "from my_lab.half import Half, objectives\nobjectives.register('madry')(type('M', (Half,), {}))\n",
            "objective 'madry' is Madry already; take another name",
        ),
    ],
)
def test_the_message_names_the_line(text: str, words: str, home: Path) -> None:
    Path("not_so.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        Run.load("half.yaml", ["uses=[not_so]"])


def test_what_is_no_list_of_names_is_refused_like_any_field(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.uses: expected a list, got 'my_lab\.half' \(str\)"):
        Run.load("half.yaml", ["uses=my_lab.half"])


def elsewhere(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in another folder, where the lab's package is not."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_source_is_kept_with_the_run_and_its_checkpoints_and_a_change_is_told(home, tmp_path, capsys) -> None:
    main(["half.yaml"])
    last = home / "run" / "checkpoints" / "00000004"
    half = Path("my_lab/half.py").read_text(encoding="utf-8")
    for folder in (home / "run", last):
        assert (folder / "uses/my_lab/half.py").read_text(encoding="utf-8") == half
        assert (folder / "uses/my_lab/sizes.py").exists()
    assert "uses/my_lab/half.py" in json.loads((last / "manifest.json").read_text())["sha256"]

    # the package is gone: the checkpoint brings its own, from any folder
    (tmp_path / "else").mkdir()
    code = (
        "import sys; from robust_train.trained import network_of; print(type(network_of(sys.argv[1]).model).__name__)"
    )
    for path in (home / "run", last):
        done = elsewhere(code, tmp_path / "else", str(path))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    # it is there, but another one: that one is used, and said
    shutil.copytree("my_lab", tmp_path / "else" / "my_lab")
    with (tmp_path / "else/my_lab/sizes.py").open("a") as file:
        file.write("EXTRA = 1\n")
    done = elsewhere(code, tmp_path / "else", str(last))
    assert done.returncode == 0, done.stderr
    assert f"my_lab/sizes.py has changed since {last} (sha256 " in done.stderr
    assert done.stderr.count("\n") == 1

    # going on with a changed source is told, with the update
    shutil.rmtree(last)
    (home / "run" / "summary.json").unlink()
    code = "import sys; from robust_train.__main__ import main; main(sys.argv[1:])"
    done = elsewhere(code, tmp_path / "else", str(home / "lab/half.yaml"), "records.progress=auto")
    assert done.returncode == 0, done.stderr
    assert "from update 2 on, what is here is used" in done.stdout + done.stderr
    assert (last / "uses/my_lab/sizes.py").read_text(encoding="utf-8").endswith("EXTRA = 1\n")

    with (last / "uses/my_lab/half.py").open("a") as file:
        file.write("# another hand\n")
    with pytest.raises(CheckpointError, match=r"half\.py is not the file that was saved"):
        checkpoint.verify(last)


def test_the_text_that_is_kept_is_the_one_that_was_imported(home: Path) -> None:
    """A file that is edited while its run is at work is not what the run does."""
    run = Run.load("half.yaml")
    before = uses.sources(run.uses)
    with open("my_lab/half.py", "a") as file:
        file.write("# edited\n")
    assert uses.sources(run.uses) == before


def test_a_value_on_its_way_brings_the_modules_it_needs(home: Path, tmp_path: Path) -> None:
    """A class of the lab's in a process that has never heard of it: pickled by name, it would not be found there."""
    threat = Run.load("half.yaml").objective.attack.threat
    (tmp_path / "value").write_bytes(pickle.dumps(uses.Carried(threat)))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).value)"
    done = elsewhere(code, tmp_path, str(tmp_path / "value"))
    assert done.returncode == 0, done.stderr
    assert "Cube(eps=0.1)" in done.stdout


def test_the_modules_of_every_member_count_in_an_ensembles_fingerprint(home: Path, monkeypatch) -> None:
    """The second member alone is built from a module of the user's: another text is another network."""
    plain = Recipe(Blueprint(SmallCNN((4,), (2,)), mean=(0.5,), std=(0.5,), group=16), 10, (1, 32, 32))
    uses.bring(["my_lab.half"])
    for name, recipe in {"plain": plain, "own": replace(plain, uses=("my_lab.half",))}.items():
        put(home / name, recipe, recipe.build().model.state_dict(), {})
    (home / "both.yaml").write_text("members: [plain, own]\n", encoding="utf-8")
    subject = Subject(str(home / "both.yaml"))
    files = {"my_lab/__init__.py", "my_lab/half.py", "my_lab/sizes.py"}
    assert set(subject.identity(None)["uses"]) == set(subject.contents()["uses"]) == files
    before = subject.fingerprints
    monkeypatch.setitem(uses._texts, "my_lab.sizes", "WIDTHS = (4, 16)")
    assert subject.fingerprints != before
    assert "uses" not in Subject(str(home / "plain")).identity(None)
