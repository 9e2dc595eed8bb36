"""An evaluation at Weights & Biases: one W&B run of the type "eval", named after what was judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_train.read import yaml
from robust_train.records.wandb import Tracker
from robust_train.settings.tracking import Tracking

CONFIG = ("command", "model", "weights", "identity", "evaluation", "seed", "versions", "device")


def mirror(tree: Mapping[str, Any], pictures: Sequence[Path], html: Path, folder: Path, tracking: Tracking) -> None:
    """Send a report as eval.json has it, its pictures and its page; its troubles cost one line of text.

    folder: where the W&B id and what is written offline lie, the network's own below the run's eval/: online all
    evaluations of a checkpoint are one W&B run, and never the run that trained it.
    """
    config = json.loads(json.dumps({name: tree[name] for name in CONFIG}))  # plain types, whatever made the tree
    otherwise = f"{html} and the report beside it hold everything"
    tracker = Tracker(folder, tree["model"], lambda: yaml.write(config), tracking, _say, "eval", otherwise)
    tracker.start()
    for name, across, points in lines(tree):
        tracker.line(name, across, points)
    for path in pictures:
        tracker.picture(0, path.stem, path)
    tracker.page("eval/page", html)
    tracker.summary(summary(tree))
    tracker.close(failed=False)


def summary(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name, `eval/clean`, `eval/linf/autoattack`, `eval/union`, with their intervals; flags that are up."""
    found: dict[str, Any] = {"eval/images": tree["images"], "eval/seconds": tree["seconds"]}
    for figure in tree["figures"]:
        threat = figure["threat"] if figure["threat"] != figure["name"] else ""
        name = "/".join(filter(None, ("eval", threat, figure["name"])))
        low, high = figure["interval95"]
        found |= {name: figure["accuracy"], f"{name}/low": low, f"{name}/high": high}
    raised = [flag["name"] for flag in tree["flags"] if flag["raised"]]
    return found | {"eval/flags": len(raised), "eval/flags_up": ", ".join(raised)}


def lines(tree: Mapping[str, Any]) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """(name, name of its axis, points) of accuracy against eps and against steps, of each threat model."""
    made: list[tuple[str, str, list[tuple[float, float]]]] = []
    for curve in tree["curves"]:
        tag = curve[-1]["threat"]
        points = [(one["eps"] or 0.0, one["accuracy"]) for one in curve]
        made.append((f"eval/{tag}/curve", f"eval/{tag}/eps", points))
    for budget in tree["budgets"]:
        name = f"eval/{budget['threat']}/budget/{budget['attack']}"
        made.append((name, f"{name}/steps", list(zip(budget["steps"], budget["accuracy"], strict=True))))
    return made


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
