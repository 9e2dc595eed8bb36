"""A training, or several, or a sweep's, as one page: curves, pictures, the run, its lineage, its final evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from robust_train.read.errors import main_guard
from robust_train.read.paths import Parser

EPILOG = """examples
  python -m tools.report runs/a                  runs/a/training.html, which needs no other file, script or network
  python -m tools.report runs/a runs/b           side by side: a chart for each number, a line for each training
  python -m tools.report runs/sweep              a sweep's folder: mean and standard error over its seeds
  python -m tools.report runs/a --base configs/demo.yaml

A run that is still at work is shown as far as it is. Differences are from --base; without it from what a run branches
from, else from the first run named, else from the defaults. `--list metrics` says what the numbers are.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="a run's folder, or a sweep's")
    parser.add_argument("--base", metavar="RUN.yaml", help="what the runs are compared with")
    parser.add_argument("--html", metavar="FILE", help="the page (training.html in the first folder)")
    return parser.parse_args(words)


@main_guard()
def main(words: list[str]) -> None:
    """Read, draw, write."""
    from robust_train.records.page import training
    from robust_train.records.training import described

    asked = arguments(words)
    text = training(described(asked.runs, asked.base))
    path = Path(asked.html) if asked.html else Path(asked.runs[0]) / "training.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
