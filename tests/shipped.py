"""The configurations that are shipped, by what they are: runs, sweeps of runs, studies made of a sweep."""

from __future__ import annotations

from pathlib import Path

from robust_train.read.parse import load_tree

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def having(field: str) -> list[Path]:
    """Those with a field that only their kind has."""
    return [path for path in CONFIGS if field in load_tree(path)]


SWEEPS, STUDIES = having("members"), having("sweep")
RUNS = [path for path in CONFIGS if path not in (*SWEEPS, *STUDIES)]
