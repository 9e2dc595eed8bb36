"""One way to say a run: a file, changes to it, and questions about both."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_train import command
from robust_train.__main__ import main
from robust_train.read.registry import registries
from robust_train.run import Run

DEMO = str(Path(__file__).parent.parent / "configs" / "demo.yaml")


def said(words: list[str], capsys) -> str:
    main(words)
    return capsys.readouterr().out


def test_what_a_dry_run_prints_is_the_run(capsys):
    printed = said([DEMO, "--dry-run"], capsys)
    assert Run.load(printed) == Run.load(DEMO)
    assert "seed: 0" in printed  # defaults too


@pytest.mark.parametrize(
    "words",
    [
        [DEMO, "updates=7", "objective.attack.steps=3", "--dry-run"],
        [DEMO, "--dry-run", "updates=7", "objective.attack.steps=3"],
        ["--dry-run", DEMO, "updates=7", "objective.attack.steps=3"],
        [DEMO, "updates=7", "--dry-run", "objective.attack.steps=3"],
    ],
)
def test_settings_may_stand_before_and_after_options(words, capsys):
    run = Run.load(said(words, capsys))
    assert (run.updates, run.objective.attack.steps) == (7, 3)
    assert Run.load(DEMO, ["updates=7", "objective.attack.steps=3"]) == run


def test_settings_alone_change_the_default_run():
    parser = command.parser("x", "y")
    arguments = parser.parse_intermixed_args(["updates=3", "seed=5"])
    run = command.read(arguments, DEMO)
    assert (run.updates, run.seed, run.name) == (3, 5, "demo")


def test_help_lists_every_section_and_field_with_units_and_defaults(capsys):
    printed = said(["--help"], capsys)
    for words in ("key=value", "run.optimiser", "run.validate", "run.cluster", "clip: float = 0.0", "updates: int"):
        assert words in printed


@pytest.mark.parametrize("noun", registries)
def test_every_registered_class_is_listed_with_a_line_and_its_fields(noun, capsys):
    printed = said(["--list", noun], capsys)
    for name in registries[noun]:
        assert name in printed
    assert printed.startswith(f"{noun}:")


def test_list_alone_lists_all_there_is(capsys):
    printed = said(["--list"], capsys)
    for noun, registry in registries.items():
        assert f"{noun}:" in printed
        assert all(name in printed for name in registry)


def test_an_unknown_noun_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--list", "atacks"])
    assert error.value.code == 2
    assert "did you mean 'attacks'?" in capsys.readouterr().err


def test_check_says_what_a_run_will_take_and_writes_nothing(small_run, tmp_path, capsys):
    printed = said([str(small_run), "--check", f"folder={tmp_path}/new", "cluster.rate=0.5"], capsys)
    for words in (
        "data: 1,437 training and 360 validation images",
        "batch: 32 images, in 1 micro-batch of 32",
        "network: ",
        "disk: 4 checkpoints of ",
        "memory of cpu: about ",
        "forecast: 4 updates of 32 images, 7 forward passes each",
        "device-hours",
        "kWh",
    ):
        assert words in printed
    assert not (tmp_path / "new").exists()


def test_check_of_a_run_that_is_under_way_forecasts_what_is_left(small_run, capsys):
    before = {path: path.read_bytes() for path in (small_run.parent / "run").rglob("*") if path.is_file()}
    printed = said([str(small_run), "--check"], capsys)
    assert "goes on from update 4" in printed
    assert "forecast: 0 updates" in printed
    assert before == {path: path.read_bytes() for path in (small_run.parent / "run").rglob("*") if path.is_file()}


def test_a_run_that_is_done_shows_its_table_again(small_run, capsys):
    printed = said([str(small_run)], capsys)
    assert "small" in printed
    assert "clean" in printed
    assert "images/s" in printed


def test_a_table_says_what_was_not_run(capsys):
    command.table({"a": {"accuracy/clean": 0.5, "images": 1200}, "b": {"accuracy/pgd20": 0.25}}, "title")
    rows = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert "50.0 %" in rows[0]
    assert "not run" in rows[0]
    assert "1,200" in rows[0]
    assert "not run" in rows[1]
    assert "25.0 %" in rows[1]
