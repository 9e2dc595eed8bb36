"""Every configuration that is shipped loads, says where its numbers come from, and survives being written."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import CONFIGS, ROOT, RUNS, SWEEPS

from robust_train.launch.sweep import Sweep
from robust_train.read.help import undocumented
from robust_train.run import Run


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_loads_and_survives_being_written(path: Path) -> None:
    run = Run.load(path)
    assert Run.load(run.dump()) == run


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sweep_loads_into_runs_that_survive_being_written(path: Path) -> None:
    sweep = Sweep.load(path)
    assert Path(sweep.run) in RUNS
    for run in sweep.runs().values():
        assert Run.load(run.dump()) == run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_says_at_its_head_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_every_field_of_a_run_is_documented() -> None:
    assert undocumented(Run) == []
