"""Paths as they are written: `~` and variables are replaced, or refused; one place has one spelling."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from robust_train.read import paths
from robust_train.read.errors import ConfigError
from robust_train.read.help import field_docs
from robust_train.read.parse import parse
from robust_train.read.registry import registries
from robust_train.run import Run

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SCRATCH", "/scratch/ann")
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("WITH", "/a$b")


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~/x", "/home/ann/x"),
        ("~", "/home/ann"),
        ("$SCRATCH/x", "/scratch/ann/x"),
        ("${SCRATCH}/x", "/scratch/ann/x"),
        ("a/$SCRATCH", "a//scratch/ann"),
        ("runs/a~b", "runs/a~b"),
        ("runs/a$", "runs/a$"),
        ("runs/$1", "runs/$1"),
        ("./~/x", "./~/x"),
        ("train-{0000..0003}.tar", "train-{0000..0003}.tar"),
        ("pipe:cat $FILES ~/x", "pipe:cat $FILES ~/x"),
        ("https://host/~ann/a.tar", "https://host/~ann/a.tar"),
        ("gs://host$SCRATCH/a.tar", "gs://host/scratch/ann/a.tar"),
    ],
)
def test_what_stands_for_a_place_is_replaced_by_it(written, path):
    assert paths.read(written) == path
    assert paths.word(written) == path
    assert paths.read(path) == path  # a run that is dumped and read again is the same


@pytest.mark.parametrize(
    "written",
    ["$NOT_SET/x", "${NOT_SET}/x", "$EMPTY/x", "${SCRATCH:-/tmp}", "$(pwd)/x", "~nobody_of_this_name/x", "$WITH"],
)
def test_what_stands_for_no_place_is_refused(written):
    with pytest.raises(ValueError, match=r"write|name"):
        paths.read(written)
    with pytest.raises(ConfigError):
        paths.word(written)


@pytest.mark.parametrize("written", [None, 3, "", " ", "a\0b", True])
def test_what_is_no_path_is_refused(written):
    with pytest.raises(ValueError, match="expected a path"):
        paths.read(written)


def test_a_setting_is_left_to_who_reads_its_value():
    assert paths.word("folder=$NOT_SET/x") == "folder=$NOT_SET/x"


def test_a_place_has_one_spelling(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    spellings = [f"{tmp_path}/a", f"{tmp_path}/a/", f"{tmp_path}//a", "a", "./a/", "link", "a/../link/", "file:a"]
    assert {paths.place(one) for one in spellings} == {os.path.realpath(tmp_path / "a")}
    assert paths.place("https://h//a/") == "https://h//a/"


OF_PATHS = re.compile(r"\b(folder|file|files|path|paths|shards|checkpoint|checkpoints|weights file)\b")
NO_PATHS = {  # fields whose words speak of files, and which are none
    "Run.name",
    "Run.uses",
}


def of_paths() -> dict[str, type]:
    """Class.field of every text field whose documentation speaks of a place on disk, of all that a run may hold."""
    found: dict[str, type] = {}
    seen: set[type] = set()
    left: list[type] = [Run, *(cls for registry in registries.values() for cls in registry.values())]
    while left:
        cls = left.pop()
        if cls in seen or not is_dataclass(cls) or not cls.__module__.startswith("robust_train"):
            continue
        seen.add(cls)
        docs = field_docs(cls)
        for f in fields(cls):
            if f.init and re.search(r"\bstr\b|FilePath", str(f.type)) and OF_PATHS.search(docs.get(f.name, "")):
                found[f"{cls.__name__}.{f.name}"] = cls
    return found


def test_every_field_of_a_path_is_read_as_one():
    """Found by what its documentation says, so that a new one joins by itself."""
    found = of_paths()
    assert {"Run.folder", "Run.start", "Shards.train", "Shards.cache", "Digits.folder", "Timm.weights"} <= found.keys()
    assert {"Distill.teachers"} <= found.keys()
    plain = [name for name, cls in found.items() if name.partition(".")[2] not in paths.path_fields(cls)]
    assert sorted(set(plain) - NO_PATHS) == []


def test_paths_are_replaced_where_a_run_is_read():
    from robust_train.data.shards import Shards

    data = parse(Shards, {"train": ["~/a.tar", "$SCRATCH/b.tar"], "classes": 2, "size": 8, "cache": "~/c"}, "data")
    assert data.train == ("/home/ann/a.tar", "/scratch/ann/b.tar")
    assert data.cache == "/home/ann/c"
    with pytest.raises(ConfigError, match=r"data\.listed: .*NOT_SET is not set"):
        parse(Shards, {"train": "a.tar", "classes": 2, "size": 8, "listed": "$NOT_SET/x"}, "data")


def test_every_command_reads_its_words_as_paths():
    """No tool makes a parser of argparse's own, whose options would make a folder called ~."""
    for path in [*ROOT.glob("tools/*.py"), *ROOT.glob("launch/*.py"), ROOT / "robust_train/command.py"]:
        made = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [one for one in made if getattr(one, "attr", "") == "ArgumentParser"], path


def test_an_option_of_a_command_is_replaced_or_refused():
    parser = paths.Parser()
    parser.add_argument("--data")
    parser.add_argument("--images", type=int)
    parser.add_argument("settings", nargs="*")
    found = parser.parse_args(["--data", "~/x", "--images", "3", "folder=~/y", "$SCRATCH/z"])
    assert (found.data, found.images) == ("/home/ann/x", 3)
    assert found.settings == ["folder=~/y", "/scratch/ann/z"]
    with pytest.raises(ConfigError, match="NOT_SET"):
        parser.parse_args(["--data=$NOT_SET/x"])
