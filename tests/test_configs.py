"""Every configuration that is shipped loads, says where its numbers come from, and survives being written."""

from __future__ import annotations

from pathlib import Path

import pytest

from robust_train.read.help import undocumented
from robust_train.run import Run

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_loads_and_survives_being_written(path: Path) -> None:
    run = Run.load(path)
    assert Run.load(run.dump()) == run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_says_at_its_head_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_every_field_of_a_run_is_documented() -> None:
    assert undocumented(Run) == []
