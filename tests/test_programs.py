"""The programs of docs/python.md and of examples/, run as they stand."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the module that the page's programs share."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(BLOCKS[0], encoding="utf-8")
    yield tmp_path
    sys.modules.pop("mine", None)


def test_the_page_has_a_shared_module_and_five_programs() -> None:
    assert BLOCKS[0].startswith("# mine.py")
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("number", range(1, 6))
def test_a_program_of_the_page_runs_word_for_word(number, place, small_run, capsys) -> None:
    if number == 5:
        shutil.copytree(small_run.parent / "run", place / "runs" / "demo")
        shutil.copytree(small_run.parent / "digits", place / "data" / "digits")
    program = place / f"program{number}.py"
    program.write_text(BLOCKS[number], encoding="utf-8")
    runpy.run_path(str(program))
    said = capsys.readouterr().out
    if number in (1, 2, 5):
        assert re.search(r"^clean +\d+\.\d\d% +\d", said, re.M)
        assert "forwards  backwards" in said
    assert (place / "report.json").is_file() == (number == 1)
    assert (place / "kept").is_dir() == (number == 4)


@pytest.mark.slow
def test_the_example_runs_and_says_what_there_is_to_believe(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "evaluate_my_own_network.py"))["main"]([])
    said = capsys.readouterr().out
    accuracy = {name: float(value) for name, value in re.findall(r"^ *([\w-]+) .*?(\d+\.\d\d)%", said, re.M)}
    assert accuracy["worst"] <= min(accuracy["noise"], accuracy["fgsm"], accuracy["apgd-ce-20"]) < accuracy["clean"]
    assert "the weakest class is " in said
    assert not list(tmp_path.iterdir())
