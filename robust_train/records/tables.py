"""Tables of an evaluation, on a terminal and as plain text elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from robust_train.evaluate.corruptions import Gain, Robustness
    from robust_train.evaluate.report import Report
    from robust_train.evaluate.shifts import Shifted
    from robust_train.evaluate.study import Spread, Study
    from robust_train.evaluate.transferability import Matrix

MOST = 20  # classes that are shown
WIDE = 140  # characters that a study's tables have room in


def show(title: str, report: Report, names: Sequence[str]) -> None:
    """Print a report: figures, curves, the weakest classes, and the flags that are up. names: of the classes."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"\n{title}: {report.images:,} images", markup=False)
    figures = _table("", "threat", "eps", "accuracy", "95 % interval", "right")
    for one in report.figures:
        name = f"  {one.name}" if one.part else one.name
        eps = f"{one.eps:.4g}" if one.eps else ""
        right = f"{one.right:g}" if one.right == round(one.right) else f"{one.right:.1f}"
        figures.add_row(
            name, one.threat, eps, f"{one.accuracy:.2%}", _interval(one.interval), f"{right} / {one.images}"
        )
    console.print(figures)
    spent = [one for one in report.figures if one.cost and not one.part]
    for one in spent:
        forwards, backwards = one.cost["forwards"], one.cost["backwards"]
        console.print(f"{one.title}: {forwards:,.1f} forward and {backwards:,.1f} backward passes an attacked image")

    for points in report.curves:
        console.print(f"accuracy against eps ({points[-1].threat}), one start each")
        curve = _table("eps", points[-1].name, "95 % interval")
        for one in points:
            curve.add_row(f"{one.eps:.4g}", f"{one.accuracy:.2%}", _interval(one.interval))
        console.print(curve)

    rows = sorted((row[-1] / row[0], label) for label, row in enumerate(report.classes) if row[0])
    console.print(f"per class, weakest first{f' ({MOST} of {len(rows)})' if len(rows) > MOST else ''}")
    classes = _table("class", "images", *report.columns)
    for _, label in rows[:MOST]:
        count, *rights = report.classes[label]
        classes.add_row(names[label], f"{count:g}", *(f"{right / count:.1%}" for right in rights))
    console.print(classes)

    looked = [flag for flag in report.flags if flag.raised is not None]
    for flag in report.raised:
        console.print(f"FLAG {flag.name}: {flag.says}", markup=False)
    console.print(f"flags: {len(report.raised)} of {len(looked)} are up", markup=False)


def show_tables(title: str, report: Report) -> None:
    """Print what a report says in numbers: its figures and its tables."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"\n{title}", markup=False)
    if report.figures:
        figures = _table("", "eps", "accuracy", "95 % interval")
        for one in report.figures:
            eps = f"{one.eps:.4g}" if one.eps else ""
            figures.add_row(f"{one.threat} {one.name}", eps, f"{one.accuracy:.2%}", _interval(one.interval))
        console.print(figures)
    for table in report.tables:
        console.print(f"{table.title}: {table.says}" if table.says else table.title, markup=False)
        shown = _table(*table.heads)
        for row in table.rows:
            shown.add_row(
                *(f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in row)
            )
        console.print(shown)


def show_shifts(title: str, found: Sequence[Shifted]) -> None:
    """Print accuracies under shift, the classes compared, and clean accuracy on the same, where known."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"\n{title}: under shift", markup=False)
    table = _table("", "accuracy", "95 % interval", "images", "classes", "clean", "gap")
    for one in found:
        figure = one.figure
        beside = ("", "") if one.clean is None or one.gap is None else (f"{one.clean.accuracy:.2%}", f"{one.gap:+.2%}")
        counts = f"{figure.images:,}", f"{one.compared:,}"
        table.add_row(figure.name, f"{figure.accuracy:.2%}", _interval(figure.interval), *counts, *beside)
    console.print(table)


def show_corruptions(title: str, found: Robustness, gain: Gain | None = None) -> None:
    """Print accuracies by corruption and severity, by category, and what they come to, in percent; "-": not judged."""
    from rich.console import Console

    from robust_train.data.corruptions import CATEGORIES, SEVERITIES

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    images = max((count for _, count in (*found.counts.values(), found.clean or (0, 0))), default=0)
    console.print(f"\n{title}: under corruptions, {images:,} images each", markup=False)
    compared = found.mce is not None or any(found.ce(name) is not None for name in found.corruptions)
    more = (*(("CE", "relative CE") if compared else ()), *(("gain",) if gain else ()))
    cells = _table("accuracy, %, at severity", *map(str, SEVERITIES), "mean", *more)
    for name in found.corruptions:
        row = [found.figures[name, s].accuracy if (name, s) in found.figures else None for s in SEVERITIES]
        extra = [_percent(found.ce(name)), _percent(found.relative_ce(name))] if compared else []
        extra += [_percent(gain.corruptions.get(name), "+")] if gain else []
        cells.add_row(name, *map(_percent, row), _percent(found.accuracy(name)), *extra)
    if found.mean is not None:
        extra = [_percent(found.mce), _percent(found.relative_mce)] if compared else []
        extra += [_percent(gain.gain_of_means, "+")] if gain else []
        cells.add_row(
            "mean of the 15", *(_percent(found.severity(s)) for s in SEVERITIES), _percent(found.mean), *extra
        )
    console.print(cells)

    groups = _table("category", "accuracy, %", *(("gain",) if gain else ()))
    for name in CATEGORIES:
        if found.category(name) is not None:
            groups.add_row(
                name, _percent(found.category(name)), *([_percent(gain.categories[name], "+")] if gain else [])
            )
    if groups.row_count:
        console.print(groups)
    rows = {
        "clean": found.clean_accuracy,
        "mean of the four categories": found.mean_of_categories,
        "mCE": found.mce,
        "relative mCE": found.relative_mce,
        "mean of the gains": gain.mean_of_gains if gain else None,
    }
    for name, value in rows.items():
        if value is not None:
            console.print(f"{name}: {value:.2%}", markup=False)


def show_study(title: str, found: Study) -> None:
    """Print a study, mean +/- standard error over seeds: accuracies, gains, differences, the paper's claims."""
    from rich.console import Console

    from robust_train.data.corruptions import CATEGORIES
    from robust_train.evaluate.study import claims

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDE)
    columns = ("clean", *CATEGORIES, "mean")
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) != 1 else ''}"
    console.print(f"\n{title}: accuracy under corruptions, %, over {seeds}", markup=False)
    networks = _table("network", "role", *columns)
    for name in found.names:
        networks.add_row(name, found.roles.of(name), *(_said(found.spread(name, one)) for one in columns))
    console.print(networks)

    gains = _table(
        f"relative gain over {found.roles.base}, %", *CATEGORIES, "mean of the 15 gains", "gain of the means"
    )
    for name in (name for name in found.names if name != found.roles.base):
        gain = found.gain(name)
        if gain["gain_of_means"] is not None:
            gains.add_row(name, *(_said(gain[one], "+") for one in (*CATEGORIES, "mean_of_gains", "gain_of_means")))
    if gains.row_count:
        console.print(gains)

    differences = _table("difference, points", *columns)
    for one, of in found.differences().items():
        spreads = [of(column) for column in columns]
        if any(spread is not None for spread in spreads):
            differences.add_row(one, *(_said(spread, "+") for spread in spreads))
    if differences.row_count:
        console.print(differences)

    said = _table("claim", "holds", "because")
    for claim in claims(found):
        said.add_row(claim.claim, claim.outcome or "open", claim.numbers)
    for column in said.columns:
        column.justify, column.overflow = "left", "fold"
    if said.row_count:
        console.print(said)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def show_transfers(matrix: Matrix) -> None:
    """Print a matrix of transfers: of each kind the error rates, and beside them what was wrong anyway left out."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    attack = matrix.source[0].name
    console.print(f"\n{matrix.clean[0].images:,} images; examples made by {attack}", markup=False)
    networks = _table("network", "accuracy", f"under its {attack}", "examples that fool it")
    for name, clean, held in zip(matrix.names, matrix.clean, matrix.source, strict=True):
        networks.add_row(name, f"{clean.accuracy:.1%}", f"{held.accuracy:.1%}", f"{clean.right - held.right:g}")
    console.print(networks)
    said = {
        "error rate over the examples that fooled the network they were made for": lambda cell: cell.error,
        "the same over those whose clean image both are right on": lambda cell: cell.transfer,
    }
    for heading, rate in said.items():
        console.print(heading)
        table = _table("made for", "kind", "RMS", *matrix.names)
        for kind in matrix.kinds:
            for name, row in zip(matrix.names, matrix.rows(kind, rate), strict=True):
                size = matrix.size(kind, name).clipped
                shown = ("-" if math.isnan(one) else f"{one:.1%}" for one in row)
                table.add_row(name, kind, "-" if math.isnan(size) else f"{size:.4f}", *shown)
        console.print(table)


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def _said(spread: Spread | None, sign: str = "") -> str:
    return "-" if spread is None else spread.said(sign)


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"
