"""The commands of an installed package: robust-train and its like are `main` of a module of launch or of tools."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

PROGRAMS = {
    "robust-train": "launch.train",
    "robust-sweep": "launch.sweep",
    "robust-distill": "launch.distill",
    "robust-submit": "launch.submit",
    "robust-doctor": "launch.doctor",
    "robust-eval": "tools.eval",
    "robust-compare": "tools.compare",
    "robust-report": "tools.report",
    "robust-convert": "tools.convert",
    "robust-ensemble": "tools.ensemble",
    "robust-transform": "tools.transform",
    "robust-shards": "tools.make_shards",
    "robust-bench": "tools.bench",
}


def main() -> None:
    """Do what the name says by which this program was started."""
    module = import_module(f"robust_train.{PROGRAMS[Path(sys.argv[0]).stem]}")
    sys.exit(module.main(sys.argv[1:]))
