"""The list of mutants keeps up with the code, and who tries them tells what is caught from what is not."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants.tried import FAILED, ROOT, Mutant, listed, outcome, ran

MUTANTS = {mutant.what: mutant for mutant in listed()}


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) == len(listed()) >= 30


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mutant_changes_one_line_that_is_there_and_names_a_test_that_is_there(what: str) -> None:
    mutant = MUTANTS[what]
    plain = (ROOT / "robust_train" / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutant.mutated(plain))) != ast.dump(ast.parse(plain))
    for test in mutant.test.split():
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), f"{path} is not there: say which test must fail now"
        text = (ROOT / path).read_text(encoding="utf-8") if name else ""
        assert not name or f"def {name.partition('[')[0]}(" in text, f"{test} is not there: say which must fail now"


HALF = Mutant("half", "half.py", "x / 2", "x / 3", "test_half.py")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project of one function and one test."""
    (tmp_path / "robust_train").mkdir()
    (tmp_path / "robust_train" / "__init__.py").write_text("")
    (tmp_path / "robust_train" / "half.py").write_text("def half(x):\n    return x / 2\n")
    (tmp_path / "test_half.py").write_text(
        "from robust_train.half import half\n\n\ndef test_one():\n    assert half(2) == 1\n\n\n"
        "def test_nought():\n    assert half(0) == 0\n"
    )
    return tmp_path


def test_a_mutant_is_caught_by_a_test_that_fails_and_by_nothing_else(copy: Path) -> None:
    """In a process of its own, in the copy; the copy is as before."""
    assert ran(copy, "test_half.py")[0] == 0
    found = outcome(copy, HALF)
    assert (found.caught, found.why) == (True, "test_half.py::test_one")
    assert not outcome(copy, replace(HALF, test="test_half.py::test_nought")).caught
    nothing = outcome(copy, replace(HALF, test="test_half.py::test_gone"))
    assert not nothing.caught
    assert "nothing was tested" in nothing.why
    broken = outcome(copy, replace(HALF, new="x /"))
    assert not broken.caught, "a file that cannot be imported tests nothing"
    assert "return x / 2" in (copy / "robust_train" / "half.py").read_text()
    with pytest.raises(ValueError, match="stands 0 times"):
        replace(HALF, old="y").mutated("x")


def test_a_mutant_that_never_ends_is_caught(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "test_half.py").write_text("def test_on():\n    while True:\n        pass\n")
    code, said = ran(copy, "test_half.py", limit=3)
    assert code == FAILED
    assert "no end within 3 s" in said
