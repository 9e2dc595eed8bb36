"""A training as it went, or several, or a sweep's: curves, pictures, the run, its lineage, what it came to."""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from robust_train.read.errors import DataError
from robust_train.read.parse import difference, load_tree, tree_of
from robust_train.records import jsonl, pictures
from robust_train.run import Run

POINTS, ROWS, SHOWN = 300, 12, 12  # of a line, of the table beside a chart, pictures of a run
CHARTS = {  # heading: (unit, beginnings of the names in it)
    "Loss": ("nats", ("loss",)),
    "Accuracy in training, on the update's images": ("share", ("accuracy/",)),
    "Accuracy on validation images": ("share", ("judged/",)),
    "Accuracy at probes, on images of the batch": ("share", ("probe/",)),
    "Learning rate": ("", ("lr",)),
    "Norm of the gradient, before clipping": ("", ("gradient/norm",)),
    "Images a second": ("images/s", ("images/s",)),
}
Curve = dict[int, float]  # by update
Line = list[tuple[float, float, float]]  # (update, mean, its standard error over seeds)


@dataclass(frozen=True)
class Training:
    """What a run's folder tells."""

    name: str
    path: Path
    tree: Mapping[str, Any]  # run.yaml
    curves: Mapping[str, Curve]
    odd: int  # values that are not finite
    summary: Mapping[str, Any]


def read(path: Path, name: str) -> Training:
    """The training in a run's folder, as far as it is. Raises DataError where there is none."""
    if not (path / "run.yaml").is_file() or not (path / "metrics.jsonl").is_file():
        raise DataError(f"{path}: no run's folder (run.yaml and metrics.jsonl), and no sweep's (seed0/NAME/run.yaml)")
    tree = load_tree(path / "run.yaml")
    curves: dict[str, Curve] = {}
    odd = 0
    for record in (*jsonl.read(path / "metrics.jsonl"), *jsonl.read(path / "timing.jsonl")):
        update = record.get("update")
        judged = "validation/images" in record
        if update is None or (judged and update >= int(tree["updates"])):
            continue  # a start; the evaluation at the end, which is of other images
        for key, value in record.items():
            if isinstance(value, (int, float)) and not math.isfinite(value):
                odd += 1
            elif isinstance(value, (int, float)):
                curves.setdefault(key.replace("accuracy/", "judged/") if judged else key, {})[int(update)] = value
    ended = path / "summary.json"
    return Training(name, path, tree, curves, odd, json.loads(ended.read_text()) if ended.is_file() else {})


def found(paths: Sequence[str]) -> dict[str, list[Training]]:
    """Trainings by what they are called: one each; of a sweep's folder a name has one for each seed."""
    groups: dict[str, list[Training]] = {}
    for path in map(Path, paths):
        members = sorted(path.glob("seed*/*/run.yaml"), key=lambda file: (len(str(file)), file))
        if (path / "run.yaml").is_file() or not members:
            name = path.name if path.name not in groups else str(path)
            groups[name] = [read(path, name)]
        for file in members if not (path / "run.yaml").is_file() else []:
            seed, name = file.parts[-3:-1]
            label = name if len(paths) == 1 else f"{path.name}/{name}"
            groups.setdefault(label, []).append(read(file.parent, f"{label}, {seed}"))
    return groups


def described(paths: Sequence[str], base: str | None = None) -> dict[str, Any]:
    """What the page shows: a tree of text, numbers and SVG."""
    groups = found(paths)
    runs = [runs[0] for runs in groups.values()]
    return {
        "title": ", ".join(groups) if len(groups) <= 3 else f"{Path(paths[0]).name}: {len(groups)} trainings",
        "seeds": max(map(len, groups.values())),
        "runs": [_said(name, some, base, runs[0]) for name, some in groups.items()],
        "finals": _finals(groups),
        "charts": charts(groups),
    }


def charts(groups: Mapping[str, Sequence[Training]]) -> list[dict[str, Any]]:
    """Of one training a chart for each kind of number; of several one for each number, a line each."""
    made = []
    for heading, (unit, begins) in CHARTS.items():
        keys = [key for runs in groups.values() for one in runs for key in one.curves if _is(key, begins)]
        lines = {
            (name, key): averaged([one.curves.get(key, {}) for one in runs])
            for key in dict.fromkeys(keys)
            for name, runs in groups.items()
        }
        lines = {place: line for place, line in lines.items() if line}
        alone = len(groups) == 1
        for key in [None] if alone else dict.fromkeys(key for _, key in lines):
            some = {k if alone else name: line for (name, k), line in lines.items() if alone or k == key}
            some = {name.replace("judged/", "accuracy/"): line for name, line in some.items()}
            if some:
                title = heading if key is None else f"{heading}: {key.replace('judged/', 'accuracy/')}"
                made.append(_chart(title, unit, some))
    return made


def averaged(curves: Sequence[Curve]) -> Line:
    """Over seeds, at the updates that all have: (update, mean, s / sqrt(n)); then means of blocks, POINTS at most."""
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    line = [(float(u), *spread([curve[u] for curve in curves])) for u in common]
    size = math.ceil(len(line) / POINTS) or 1
    blocks = [line[first : first + size] for first in range(0, len(line), size)]
    return [tuple(map(statistics.fmean, zip(*block, strict=True))) for block in blocks]  # type: ignore[misc]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error s / sqrt(n); 0 of one alone."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def differences(one: Training, base: str | None, first: Training) -> tuple[str, list[str]]:
    """(what a run is compared with, how it differs): a named base; what it branches from; the first; defaults."""
    own = {key: value for key, value in one.tree.items() if key not in ("name", "folder", "branch")}
    branch = one.tree.get("branch")
    if base is not None:
        return base, difference(_plain(load_tree(Run.load(base).dump()), own), own)
    if branch and (said := next((p / "run.yaml" for p in (Path(branch), Path(branch).parent.parent)
                                 if (p / "run.yaml").is_file()), None)):  # fmt: skip
        return str(branch), difference(_plain(load_tree(said), own), own)
    if one is not first:
        return first.name, difference(_plain(first.tree, own), own)
    usual: dict[str, Any] = {}
    for f in fields(Run):
        if f.default is not MISSING:
            usual[f.name] = f.default
        elif f.default_factory is not MISSING:
            usual[f.name] = f.default_factory()
    return "the defaults of every field", difference(_plain(load_tree_of(usual), own), own)


def load_tree_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a run.yaml has them."""
    return dict(json.loads(json.dumps(tree_of(values))))


def _plain(tree: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in ("name", "folder", "branch")}


def _is(key: str, begins: Iterable[str]) -> bool:
    return key != "probe/collapsed" and any(key == one or key.startswith(one.rstrip("/") + "/") for one in begins)


def _chart(title: str, unit: str, lines: Mapping[str, Line]) -> dict[str, Any]:
    svg = pictures.lines(lines, unit)
    updates = sorted({point[0] for line in lines.values() for point in line})
    picked = sorted({round(place * (len(updates) - 1) / (ROWS - 1)) for place in range(ROWS)})
    at = [{point[0]: point[1:] for point in line} for line in lines.values()]
    rows = [(f"{updates[place]:,.0f}", [_number(one.get(updates[place])) for one in at]) for place in picked]
    ends = [f"{name} from {line[0][1]:.4g} to {line[-1][1]:.4g}" for name, line in lines.items()]
    says = f"{title} by update: {'; '.join(ends)}; its numbers follow"
    return {"heading": title, "svg": svg, "says": says, "names": list(lines), "rows": rows}


def _number(found: Sequence[float] | None) -> str:
    if found is None:
        return ""
    return f"{found[0]:.4g}" + (f" ± {found[1]:.2g}" if found[1] else "")


def _finals(groups: Mapping[str, Sequence[Training]]) -> dict[str, Any]:
    """The evaluation at the end: a column an accuracy, a row a training; over several seeds with the standard error."""
    keys = sorted(
        {key for runs in groups.values() for one in runs for key in one.summary if key.startswith("accuracy/")}
    )
    rows = []
    for name, runs in groups.items():
        cells = []
        for key in keys:
            shares = [one.summary[key] for one in runs if key in one.summary]
            mean, error = spread(shares) if shares else (0.0, 0.0)
            cells.append(
                f"{100 * mean:.2f} %" + (f" ± {100 * error:.2f}" if len(shares) > 1 else "") if shares else "not run"
            )
        done = [one for one in runs if one.summary]
        images = next(
            (f"{one.summary['validation/images']:,.0f}" for one in done if "validation/images" in one.summary), ""
        )
        rows.append({"name": name, "cells": cells, "images": images, "done": len(done), "of": len(runs)})
    return {"columns": [key.removeprefix("accuracy/") for key in keys], "rows": rows}


def _said(name: str, runs: Sequence[Training], base: str | None, first: Training) -> dict[str, Any]:
    """A training in words: state, lineage, YAML, differences, pictures, tools.eval's figures; of seeds the first's."""
    one = runs[0]
    kept = one.path / "lineage.json"
    against, differ = differences(one, base, first)
    judged = one.path / "eval.json"
    last = max((max(curve) for curve in one.curves.values()), default=-1) + 1
    total = int(one.tree["updates"])
    return {
        "name": name,
        "seeds": [run.tree.get("seed") for run in runs],
        "state": f"{min(last, total):,} of {total:,} updates" + ("" if one.summary else ", not ended"),
        "odd": sum(run.odd for run in runs),
        "lineage": json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else [],
        "yaml": (one.path / "run.yaml").read_text(encoding="utf-8"),
        "against": against,
        "differ": differ,
        "pictures": _pictures(one),
        "figures": json.loads(judged.read_text(encoding="utf-8")).get("figures", []) if judged.is_file() else [],
    }


def _pictures(one: Training) -> list[dict[str, str]]:
    """pictures/NAME-UPDATE.png in order of time, spread evenly where there are many."""
    timed = []
    for path in (one.path / "pictures").glob("*-*.png"):
        what, _, update = path.stem.rpartition("-")
        if update.isdigit():
            timed.append((int(update), what, path))
    timed.sort()
    step = max(1, math.ceil(len(timed) / SHOWN))
    chosen = timed[::-1][::step][::-1]  # the last is always among them
    return [
        {
            "png": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
            "alt": f"{what} of {one.name} after {update:,} updates: images above, what became of them below",
            "caption": f"{what}, update {update:,}",
        }
        for update, what, path in chosen
    ]
