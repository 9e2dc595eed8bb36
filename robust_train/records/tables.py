"""Tables of an evaluation, on a terminal and as plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from robust_train.evaluate.report import Report

MOST = 20  # classes that are shown


def show(title: str, threat: str, restarts: int, report: Report, names: Sequence[str]) -> None:
    """Print a report: its figures, its curve, the weakest classes, and the signs of masking.

    threat: the name of the threat model. names: of the classes.
    """
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    last = report.figures[-1]
    starts = f"{restarts} restart{'s' * (restarts > 1)}"
    console.print(f"\n{title}: {threat} eps {last.eps:.4g}, {report.images:,} images, {starts}", markup=False)
    figures = _table("", "accuracy", "95 % interval", "right / images")
    for one in report.figures:
        figures.add_row(one.name, f"{one.accuracy:.2%}", _interval(one.interval), f"{one.right} / {one.images}")
    console.print(figures)

    if report.curve:
        console.print(f"accuracy against eps ({threat}), one start each")
        curve = _table("eps", report.curve[-1].name, "95 % interval")
        for one in report.curve:
            curve.add_row(f"{one.eps:.4g}", f"{one.accuracy:.2%}", _interval(one.interval))
        console.print(curve)

    rows = sorted((held / n, label, n, right / n) for label, (n, right, held) in enumerate(report.classes) if n)
    console.print(f"per class, weakest first{f' ({MOST} of {len(rows)})' if len(rows) > MOST else ''}")
    classes = _table("class", "images", "clean", last.name)
    for robust, label, count, clean in rows[:MOST]:
        classes.add_row(names[label], str(count), f"{clean:.1%}", f"{robust:.1%}")
    console.print(classes)

    for sign in report.signs:
        console.print(f"sign of gradient masking: {sign}", markup=False)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"
