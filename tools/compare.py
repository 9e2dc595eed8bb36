"""Checkpoints side by side: what tools.eval found of each, and what of it may be compared."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_train.read.errors import main_guard
from robust_train.read.paths import Parser

EPILOG = """examples
  python -m tools.compare runs/madry runs/trades runs/light
      the reports that tools.eval wrote into these runs' folders
  python -m tools.compare before.json after.json --html compare.html
      two reports, as a table and as a page that needs no other file

what stands in one row
  Figures whose attack with all its settings, eps, number of images and data (by checksum) are the same, and how images
  were made ready (size, crop), the list they are of, noise, seed, chunk. Figures of one name that were obtained
  otherwise stand in rows of their own, which say what differs: they are not to be compared.

what the differences say
  Each is from the row's first, in points. Where verdicts were kept beside both reports and the same images were judged,
  "-3 +8" says that the first alone has 3 images right and the other alone 8, and p how likely a split as uneven is by
  chance (McNemar's exact test). Else look at the intervals (Wilson's, 95 %): they are wider than a difference on the
  same images needs.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.compare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "reports",
        nargs="+",
        metavar="REPORT",
        help="an eval.json, a run's folder with one in it, or an ensemble's file",
    )
    parser.add_argument("--json", metavar="FILE", help="the comparison (not written)")
    parser.add_argument("--html", metavar="FILE", help="the same as one page (not written)")
    parser.add_argument("--pictures", metavar="FOLDER", help="curves of all, compare-*.png (not written)")
    found = parser.parse_args(words)
    if len(found.reports) < 2:
        parser.error("name two reports or more: one alone is read by tools.eval itself")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Read, compare, show, and write what is asked for."""
    from robust_train.records import comparing
    from robust_train.records.exhibits import write
    from robust_train.records.page import comparison

    asked = arguments(words)
    reports = comparing.read(asked.reports)
    tree = comparing.compare(reports)
    show(tree)
    if asked.json:
        _write(Path(asked.json), json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    if asked.html:
        _write(Path(asked.html), comparison(tree, comparing.charts(reports)))
    if asked.pictures:
        drawn = comparing.charts(reports, "png")
        made = {f"compare-{place + 1}.png": png for place, (_, png) in enumerate(drawn)}
        for path in write(made, Path(asked.pictures)):
            print(f"written: {path}")


def show(tree: Mapping[str, Any]) -> None:
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for report in tree["reports"]:
        table.add_column(Text(report["name"]), justify="right", overflow="fold")
    for row in tree["rows"]:
        table.add_row(Text(_head(row)), *(Text(_cell(cell)) for cell in row["cells"]))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 60 + 26 * len(tree["reports"]))  # a file is as wide as it must be
    console.print(table)


def _head(row: Mapping[str, Any]) -> str:
    """What a row is of."""
    threat = "" if row["threat"] in ("", row["name"]) else f"{row['threat']} "
    eps = f"eps {row['eps']:.4g}, " if row["eps"] else ""
    differs = f"\ndiffers: {row['differs']}" if row["differs"] else ""
    return f"{'  ' * row['part']}{threat}{row['name']}\n{eps}{row['images']:,} images{differs}"


def _cell(cell: Mapping[str, Any] | None) -> str:
    """A figure with its interval, and below it the difference from the row's first."""
    if cell is None:
        return "-"
    low, high = cell["interval95"]
    text = f"{cell['accuracy']:.2%}\n{low:.1%} to {high:.1%}"
    if "difference" in cell:
        text += f"\n{100 * cell['difference']:+.2f} points"
    if cell["pair"]:
        text += f"\n-{cell['pair']['lost']} +{cell['pair']['gained']}, p = {cell['pair']['p']:.2g}"
    return text + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
