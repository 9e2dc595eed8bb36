"""An evaluation, or a comparison of several, as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_train.records import pictures
from robust_train.records.exhibits import Exhibit

if TYPE_CHECKING:
    from jinja2 import Environment

WEAKEST = 20  # classes that are seen at once; the others unfold
Tree = Mapping[str, Any]


def page(tree: Tree, shown: Sequence[Exhibit] = ()) -> str:
    """The page of a report as eval.json has it, with the images `shown`. A function of both, to the byte.

    Every text is escaped; charts are SVG and images PNG, inside the page, whose policy refuses any request.
    """
    names = [row["class"] for row in tree["classes"]]
    tags = list(dict.fromkeys(one["threat"] for one in tree["figures"] if one["threat"]))
    groups = [[one for one in tree["figures"] if one["threat"] == tag] for tag in ("", *tags)]
    flags = {kind: [one for one in tree["flags"] if one["raised"] is kind] for kind in (True, False, None)}
    template = _environment().get_template("evaluation.html.j2")
    return template.render(
        tree=tree,
        groups=groups,
        heads=[figures[-1] for figures in groups],
        charts=_curves(tree) + _budgets(tree),
        columns=_columns(tree),
        classes=_weakest(tree),
        weakest=WEAKEST,
        exhibits=[(tag, _shown(shown, names, tag, True), _shown(shown, names, tag, False)) for tag in tags],
        flags=flags,
    )


def comparison(tree: Tree, charts: Sequence[tuple[str, bytes]]) -> str:
    """The page of what tools.compare found; charts: (heading, SVG)."""
    drawn = [{"heading": heading, "svg": _svg(svg)} for heading, svg in charts]
    return _environment().get_template("comparison.html.j2").render(tree=tree, charts=drawn)


def training(tree: Tree) -> str:
    """The page of what tools.report found."""
    drawn = [{**chart, "svg": _svg(chart["svg"])} for chart in tree["charts"]]
    return _environment().get_template("training.html.j2").render(tree=tree, charts=drawn)


def radius(eps: float | None) -> str:
    """eps as people write it: k/255 where it is that, else four digits; empty for clean images."""
    if not eps:
        return ""
    grey = 255 * eps
    return f"{grey:.0f}/255" if grey <= 128 and abs(grey - round(grey)) < 1e-6 else f"{eps:.4g}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}\u00a0%"
    made.filters["signed"] = lambda share: f"{100 * share:+.1f}".replace("-", "−")
    made.filters["radius"] = radius
    made.filters["short"] = lambda checksum: str(checksum)[:12]
    made.filters["duration"] = _duration
    made.filters["count"] = lambda right: f"{right:,.0f}" if right == round(right) else f"{right:,.1f}"
    return made


def _curves(tree: Tree) -> list[dict[str, Any]]:
    """Accuracy against eps, a chart for each threat model, with its numbers."""
    made = []
    for points in tree["curves"]:
        last = points[-1]
        line = {last["name"]: [one["accuracy"] for one in points]}
        svg = pictures.curve([one["eps"] or 0.0 for one in points], line, tree["images"], unit="eps", form="svg")
        rows = [(radius(one["eps"]) or "clean", one["accuracy"]) for one in points]
        heading = f"Accuracy against eps, {last['threat']}"
        made.append({"heading": heading, "svg": _svg(svg), "across": "eps", "table": [(last["name"], rows)]})
    return made


def _budgets(tree: Tree) -> list[dict[str, Any]]:
    """Accuracy against steps, a chart for each threat model, with its numbers."""
    made = []
    for tag in dict.fromkeys(one["threat"] for one in tree["budgets"]):
        some = [one for one in tree["budgets"] if one["threat"] == tag]
        svg = pictures.budget({one["attack"]: (one["steps"], one["accuracy"]) for one in some}, form="svg")
        table = [
            (one["attack"], [(f"{step:,}", share) for step, share in zip(one["steps"], one["accuracy"], strict=True)])
            for one in some
        ]
        heading = f"Accuracy against the attack's budget, {tag}"
        made.append({"heading": heading, "svg": _svg(svg), "across": "steps", "table": table})
    return made


def _columns(tree: Tree) -> list[str]:
    """What the table of classes has columns of."""
    return [key.removeprefix("right/") for key in (tree["classes"] or [{}])[0] if key.startswith("right/")]


def _weakest(tree: Tree) -> list[dict[str, Any]]:
    """The classes that have images, the least accurate in the last column first."""
    columns = _columns(tree)
    rows = [
        {
            "name": row["class"],
            "images": row["images"],
            "shares": [row[f"right/{column}"] / row["images"] for column in columns],
        }
        for row in tree["classes"]
        if row["images"]
    ]
    return sorted(rows, key=lambda row: row["shares"][-1])


def _shown(shown: Sequence[Exhibit], names: Sequence[str], tag: str, fallen: bool) -> list[dict[str, Any]]:
    """What the template says of the exhibits of a kind."""
    return [_exhibit(one, names) for one in shown if one.threat == tag and one.fallen == fallen]


def _exhibit(one: Exhibit, names: Sequence[str]) -> dict[str, Any]:
    clean, point = one.pixels.float() / 255
    change = point - clean
    scale = pictures.amplification(float(change.abs().max()))
    images: list[dict[str, Any]] = []
    for what, pixels, logits in (("clean", clean, one.logits[0]), ("attacked", point, one.logits[1])):
        probability, guess = logits.float().softmax(0).max(0)
        seen = {"name": names[int(guess)], "right": int(guess) == one.label, "probability": float(probability)}
        images.append({"what": what, "png": _png(pixels), "seen": seen})
    images.append({"what": f"difference ×{scale}", "png": _png(0.5 + scale * change / 2), "seen": None})
    said = {"sample": one.sample, "label": names[one.label], "attack": one.attack, "margin": one.margin}
    return {**said, "distance": one.distance, "images": images, "small": max(clean.shape[1:]) < 128}


def _png(pixels: Tensor) -> str:
    """An image [C, H, W] in [0, 1], C of 1 or 3, as a data URI."""
    from PIL import Image

    array = pixels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _svg(text: bytes) -> Any:
    """A chart of ours, which is not to be escaped: matplotlib has escaped the texts in it."""
    from markupsafe import Markup

    return Markup(text.decode())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
