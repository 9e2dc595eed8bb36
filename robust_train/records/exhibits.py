"""What an evaluation shows: the images that fell furthest and those that nearly fell, and its charts as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.report import Report
from robust_train.evaluate.verdicts import FALLEN, Plan, Verdicts
from robust_train.keyed import Key
from robust_train.losses import full
from robust_train.records import pictures

EACH = 4  # images of a kind and threat model


@dataclass(frozen=True)
class Exhibit:
    """One image and the point that an attack found for it."""

    threat: str  # the threat model's tag
    attack: str  # the attack's label
    sample: int  # identity in the data set
    label: int
    fallen: bool  # else it stands after every attack
    margin: float  # z_y - max z_j at the point
    distance: float  # from the image, in the threat model's norm
    pixels: Tensor  # [2, C, H, W] uint8: the image and the point
    logits: Tensor  # [2, K] of those pixels: of the point as rounded to 8 bits


def exhibits(network: Any, verdicts: Verdicts, plan: Plan, each: int = EACH) -> list[Exhibit]:
    """Of each threat model the most confidently wrong images, then those that stand by the least; at most `each`.

    An image falls to one attack and counts with that one's point; one that stands counts with the point that came
    nearest. Among those whose points were kept: the first of each attack's. Costs one forward pass of what is shown.
    """
    found = []
    for tag in dict.fromkeys(trial.threat for trial in plan.trials if trial.role == "attack"):
        known: dict[int, Exhibit] = {}
        row = plan.of("attack", tag)
        last = torch.stack([verdicts.columns[trial.name].stands for trial in row]).all(0)
        stands = dict(zip(verdicts.sample.tolist(), last.tolist(), strict=True))
        for trial in row:
            label = "" if trial.attack is None else trial.attack.label
            rows = verdicts.pictures.get(trial.name) or {"sample": torch.zeros(0)}
            for place, sample in enumerate(rows["sample"].tolist()):
                one = {name: tensor[place] for name, tensor in rows.items()}
                margin, far, fallen = float(one["order"]), float(one["distance"]), not stands[sample]
                if sample in known and known[sample].margin <= margin:
                    continue
                if (fallen and int(one["kind"]) != FALLEN) or far == 0:
                    continue  # a later attack felled it, this point did not; or it is the image itself
                truth, pair = int(one["label"]), one["pixels"]
                known[sample] = Exhibit(tag, label, sample, truth, fallen, margin, far, pair, torch.empty(0))
        order = sorted(known.values(), key=lambda one: (one.margin, one.sample))
        found += [one for one in order if one.fallen][:each] + [one for one in order if not one.fallen][:each]
    return _seen(network, found)


def _seen(network: Any, found: Sequence[Exhibit]) -> list[Exhibit]:
    """The same with the logits of what is shown."""
    if not found:
        return []
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.stack([one.pixels for one in found], 1).to(device).float().div(255)
    with judged(network, Key(0)), torch.no_grad():
        logits = torch.stack([full(network(images)).cpu() for images in pixels], 1)
    return [Exhibit(**{**vars(one), "logits": seen}) for one, seen in zip(found, logits, strict=True)]


def draw(report: Report, shown: Sequence[Exhibit], names: Sequence[str], title: str) -> dict[str, bytes]:
    """PNG by file name: images of each threat model, accuracy against eps, accuracy against steps."""
    made: dict[str, bytes] = {}
    for tag in dict.fromkeys(one.threat for one in shown):
        some = [one for one in shown if one.threat == tag]
        clean, attacked = torch.stack([one.pixels for one in some], 1).float().div(255)
        before, after = torch.stack([one.logits for one in some], 1)
        labels = torch.tensor([one.label for one in some])
        figure = [figure for figure in report.figures if figure.threat == tag][-1]
        heading = f"{title}: {figure.name}, {tag} eps {figure.eps:.4g}"
        made[f"eval-{tag}.png"] = pictures.attack_picture(clean, attacked, labels, before, after, names, heading)
    for points in report.curves:
        last = points[-1]
        line = {last.name: [one.accuracy for one in points]}
        radii = [one.eps or 0.0 for one in points]
        picture = pictures.curve(radii, line, report.images, title, f"eps ({last.threat})")
        made[f"eval-curve-{last.threat}.png"] = picture
    for tag in dict.fromkeys(one.threat for one in report.budgets):
        lines = {one.attack: (one.steps, one.accuracy) for one in report.budgets if one.threat == tag}
        made[f"eval-budget-{tag}.png"] = pictures.budget(lines, f"{title}, {tag}")
    return made


def write(made: dict[str, bytes], folder: Path) -> list[Path]:
    """Write pictures to a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in made.items():
        (folder / name).write_bytes(png)
    return [folder / name for name in made]
