"""Reports side by side: figures that were obtained alike in one row, those that were not in rows of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_train.read.errors import DataError
from robust_train.records import pairs, pictures
from robust_train.trained import home_of, is_ensemble

Tree = Mapping[str, Any]
NEEDED = ("figures", "curves", "identity", "images")
MOST = 6  # differences that are named


@dataclass(frozen=True)
class Judged:
    """One report, and where it lies."""

    name: str  # a short one, for a column
    path: Path
    tree: Tree  # eval.json


def read(paths: Sequence[str]) -> list[Judged]:
    """The reports in files, or in the folders of runs or ensembles. Raises DataError for what is none."""
    found = []
    files = [home_of(path) / "eval.json" if is_ensemble(path) else _file(path) for path in paths]
    names = _short([str(file.parent) if is_ensemble(path) else path for path, file in zip(paths, files, strict=True)])
    for path, file, name in zip(paths, files, names, strict=True):
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            makes = Path(path).is_dir() or is_ensemble(path)
            remedy = f"`python -m tools.eval {path}` makes one" if makes else "name one that is there"
            raise DataError(f"{file}: there is no such report: {remedy}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{file} is no report ({error}): name an eval.json, or a run's folder") from None
        missing = [key for key in NEEDED if not isinstance(tree, dict) or key not in tree]
        if missing:
            raise DataError(f"{file} says nothing of {', '.join(missing)}: make it anew by tools.eval")
        found.append(Judged(name, file, tree))
    return found


def compare(reports: Sequence[Judged]) -> dict[str, Any]:
    """{"reports", "rows"}: for JSON, a table and a page.

    A row is a figure under one set of terms: attack with all its settings, eps, number of images, checksums of the
    data, how images were made ready (size, crop, interpolation), the list they are of, noise, seed, chunk, passes.
    Figures of one name whose terms differ stand in several rows, each of which says in what it `differs`. A cell holds
    accuracy and interval, and against the row's first the images that either alone has right
    with McNemar's p, where the same images were judged and their verdicts were kept.
    """
    groups: dict[tuple[str, str], list[tuple[Tree, list[tuple[int, Tree]]]]] = {}
    own: Tree
    for place, report in enumerate(reports):
        for figure in report.tree["figures"]:
            group = groups.setdefault((figure["threat"], figure["name"]), [])
            own = terms(report.tree, figure)
            row = next((cells for known, cells in group if known == own), None)
            if row is None:
                group.append((own, [(place, figure)]))
            else:
                row.append((place, figure))
    columns = [pairs.kept(report.tree, report.path) for report in reports]
    rows = []
    for (threat, name), group in groups.items():
        apart = differences([own for own, _ in group])
        for (own, cells), differs in zip(group, apart, strict=True):
            made: list[dict[str, Any] | None] = [None] * len(reports)
            for place, figure in cells:
                made[place] = _cell(figure, place, cells[0], reports, columns)
            head = {"threat": threat, "name": name, "eps": cells[0][1]["eps"], "images": cells[0][1]["images"]}
            rows.append({**head, "part": cells[0][1]["part"], "differs": differs, "terms": own, "cells": made})
    heads = [
        {"name": one.name, "report": str(one.path), "model": one.tree["model"], "weights": one.tree["weights"]}
        for one in reports
    ]
    return {"reports": heads, "rows": rows}


def terms(tree: Tree, figure: Tree) -> dict[str, Any]:
    """All that decides a figure beside the network."""
    return {
        "eps": figure["eps"],
        "images": figure["images"],
        "attack": _attack(tree, figure),
        "data": tree["identity"]["data"],
        "prepared": tree["identity"].get("prepared", {}),
        "list": tree["identity"].get("listed"),
        "noise": tree.get("noise") or "drawn",  # a network without noise of its own answers as in training, too
        "seed": tree.get("seed"),
        **{name: tree.get("evaluation", {}).get(name) for name in ("chunk", "passes")},
    }


def differences(each: Sequence[Tree]) -> list[str]:
    """In what each of several terms is unlike the others: "" for one alone, else such as "eps 0.1, attack.steps 20"."""
    said: list[list[str]] = [[] for _ in each]
    lacking: list[list[str]] = [[] for _ in each]
    for at, values in _apart(each, ""):
        for place, value in enumerate(values):
            if value is None:
                lacking[place].append(f"no {at}")
            elif at.startswith("data."):
                said[place].append(f"data {at.removeprefix('data.')} {str(value)[:8]}")  # a shard and its checksum
            else:
                said[place].append(at if isinstance(value, Mapping) else f"{at} {_value(value)}")
    words = [held or missing for held, missing in zip(said, lacking, strict=True)]
    return [", ".join(some[:MOST]) + (f" and {len(some) - MOST} more" if len(some) > MOST else "") for some in words]


def charts(reports: Sequence[Judged], form: pictures.Form = "svg") -> list[tuple[str, bytes]]:
    """(heading, chart) of accuracy against eps: lines of all reports whose points were obtained alike share a chart."""
    groups: dict[str, list[tuple[str, Sequence[Tree]]]] = {}
    for report in reports:
        for curve in report.tree["curves"]:
            own = [terms(report.tree, point) for point in curve]
            groups.setdefault(json.dumps(own, sort_keys=True), []).append((report.name, curve))
    made = []
    for lines in groups.values():
        first = lines[0][1]
        heading = f"{first[-1]['threat']}: {first[-1]['name']}, {first[0]['images']:,} images"
        accuracies = {name: [point["accuracy"] for point in curve] for name, curve in lines}
        radii = [point["eps"] or 0.0 for point in first]
        title = heading if form == "png" else ""
        made.append((heading, pictures.curve(radii, accuracies, first[0]["images"], title, "eps", form)))
    return made


def _cell(
    figure: Tree,
    place: int,
    first: tuple[int, Tree],
    reports: Sequence[Judged],
    columns: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """A figure, and its difference from the first of its row."""
    cell = {"accuracy": figure["accuracy"], "interval95": figure["interval95"], "right": figure["right"], "pair": None}
    if place == first[0]:
        return cell
    cell["difference"] = figure["accuracy"] - first[1]["accuracy"]
    theirs = pairs.shares(reports[first[0]].tree, first[1], columns[first[0]])
    mine = pairs.shares(reports[place].tree, figure, columns[place])
    if mine is None or theirs is None:
        return cell
    pair = pairs.pair((columns[first[0]]["sample"], theirs), (columns[place]["sample"], mine))
    if pair is not None:
        cell["pair"] = {"lost": pair.first, "gained": pair.second, "p": pair.chance}
    return cell


def _attack(tree: Tree, figure: Tree) -> Any:
    """A figure's attack, in full: of a row or a union what it is made of."""
    attack = figure["attack"]
    if "attacks" in attack:
        named = {f"{one['threat']}/{one['name']}": one for one in tree["figures"] if one["part"]}
        return {"use": attack["use"], "attacks": {name: named[name]["attack"] for name in attack["attacks"]}}
    if attack.get("use") == "union":
        named = {f"{one['threat']}/{one['name']}": one for one in tree["figures"]}
        return {name: _attack(tree, named[name]) for name in attack["of"]}
    return attack


def _apart(each: Sequence[Any], at: str) -> Iterator[tuple[str, list[Any]]]:
    """(dotted name, values) of where trees are unlike, as high up as says it: of things of another kind their `use`."""
    if all(one == each[0] for one in each):
        return
    if not all(isinstance(one, Mapping) for one in each):
        yield at, list(each)
        return
    names = list(dict.fromkeys(name for one in each for name in one))
    if "use" in names and len({one.get("use") for one in each}) > 1:
        yield at, [one.get("use") for one in each]
        return
    for name in names:
        yield from _apart([one.get(name) for one in each], f"{at}.{name}" if at else str(name))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _file(path: str) -> Path:
    return Path(path) / "eval.json" if Path(path).is_dir() else Path(path)


def _short(paths: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that tell all apart; eval.json and its like are not told."""
    parts = []
    for path in paths:
        place = Path(path)
        named = [*place.parts[:-1]] if place.name == "eval.json" and len(place.parts) > 1 else [*place.parts]
        parts.append([part.removesuffix(".json") for part in named] or [path])
    for depth in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-depth:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({place + 1})" for place, part in enumerate(parts)]
