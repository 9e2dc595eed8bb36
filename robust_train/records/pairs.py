"""Verdicts image by image, kept beside a report, and what two networks' verdicts on the same images say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robust_train.evaluate.verdicts import Plan, Verdicts

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two networks on the same images: the first's verdicts and the second's, image by image."""

    images: int
    first: int  # images that the first alone has right
    second: int  # images that the second alone has right

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.second - self.first) / self.images

    @property
    def chance(self) -> float:
        """McNemar's exact test, two-sided: P(a split of the images that differ, at least as uneven) for a fair coin.

        p = min(1, 2 P(X <= min(first, second))), X ~ Binomial(first + second, 1/2). McNemar 1947, Psychometrika 12.
        """
        differ, least = self.first + self.second, min(self.first, self.second)
        below = sum(math.comb(differ, count) for count in range(least + 1))
        return min(1.0, 2 * below / 2**differ)


def keep(verdicts: Verdicts, plan: Plan, path: Path) -> None:
    """Write the verdicts that figures are made of: `sample` [N], and of each trial the shares right [N]."""
    names = [trial.name for trial in plan.trials if trial.role in ("clean", "attack")]
    columns = {name: verdicts.columns[name].right.float().contiguous() for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"sample": verdicts.sample.contiguous(), **columns}, path)


def kept(tree: Tree, report: Path) -> dict[str, Tensor]:
    """What `keep` wrote for the report at a path; {} where it is gone or belongs to another report."""
    try:
        found = load_file(report.parent / tree["verdicts"])
    except (KeyError, OSError, SafetensorError):
        return {}
    return found if len(found.get("sample", ())) == tree["images"] else {}


def shares(tree: Tree, figure: Tree, columns: Mapping[str, Tensor]) -> Tensor | None:
    """[N] the shares right that a figure is the mean of; None where they were not kept, or give another figure."""
    each = [columns.get(name) for name in _trials(tree, figure)]
    if not each or any(column is None for column in each):
        return None
    found = torch.stack([column for column in each if column is not None]).amin(0)
    return found if abs(float(found.double().sum()) - figure["right"]) < 1e-3 * max(1, len(found)) else None


def pair(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Pair | None:
    """Of (samples [N], shares right [N]) each; right is what was so in more than half of the passes. None where the
    samples differ."""
    (mine, left), (theirs, right) = first, second
    if not torch.equal(mine, theirs) or not len(mine):
        return None
    one, other = left > 0.5, right > 0.5
    return Pair(len(mine), int((one & ~other).sum()), int((other & ~one).sum()))


def _trials(tree: Tree, figure: Tree) -> list[str]:
    """The trials whose worst a figure is."""
    if figure["name"] == "clean":
        return ["clean"]
    if figure["threat"] == "union":
        named = {f"{one['threat']}/{one['name']}": one for one in tree["figures"]}
        return [name for one in figure["attack"]["of"] for name in _trials(tree, named[one])]
    return list(figure["attack"].get("attacks") or [f"{figure['threat']}/{figure['name']}"])
