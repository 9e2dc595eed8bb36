"""A report: what a network was attacked with, on which images, and how it held, with how sure that is."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_train.disk import write_text
from robust_train.read.errors import ConfigError


@dataclass(frozen=True)
class Figure:
    """One accuracy, and all that is needed to obtain it again."""

    name: str  # "clean", or the attack's own name: "pgd20"
    right: float  # images that were right, and stayed so; of a network with randomness of its own the mean of passes
    images: int  # images that were judged
    eps: float | None = None  # radius, in the threat model's unit; None for clean images
    attack: dict[str, Any] = field(default_factory=dict)  # the attack as YAML says it
    threat: str = ""  # the threat model's tag, "linf"; "union" over several; none for clean images
    part: bool = False  # one attack of several in a row, after those before it: not the whole
    cost: Mapping[str, float] = field(default_factory=dict)  # means over attacked images: "forwards", "backwards"

    @property
    def accuracy(self) -> float:
        """Right over all images, those wrong from the start included."""
        return self.right / self.images if self.images else math.nan

    @property
    def title(self) -> str:
        """Its name among others: "clean", "linf/pgd50", "union"."""
        return f"{self.threat}/{self.name}" if self.threat and self.threat != self.name else self.name

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.accuracy, self.images)

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "threat": self.threat,
            "part": self.part,
            "accuracy": self.accuracy,
            "interval95": list(self.interval),
            "right": self.right,
            "images": self.images,
            "eps": self.eps,
            "attack": self.attack,
            **({"cost": dict(self.cost)} if self.cost else {}),
        }


@dataclass(frozen=True)
class Flag:
    """One thing that could fool an evaluation: looked for, and seen or not."""

    name: str  # "zero gradients"
    raised: bool | None  # None: not looked for, `says` why
    says: str  # what was seen, and what to do about it
    value: float | None = None  # what was measured
    limit: float | None = None  # and from where on it raises the flag

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "raised": self.raised, "says": self.says, "value": self.value, "limit": self.limit}


@dataclass(frozen=True)
class Budget:
    """How accuracy falls with an attack's steps (of Square: queries)."""

    attack: str  # the attack's label
    threat: str  # the threat model's tag
    steps: tuple[int, ...]
    accuracy: tuple[float, ...]  # over all images, after so many steps

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "attack": self.attack,
            "threat": self.threat,
            "steps": list(self.steps),
            "accuracy": list(self.accuracy),
        }


@dataclass(frozen=True)
class Table:
    """Numbers under headings."""

    title: str
    heads: tuple[str, ...]  # of the columns; the first is of the rows' names
    rows: tuple[tuple[str | float | int | None, ...], ...]
    says: str = ""  # what the numbers are: formula, unit, over what

    def tree(self) -> dict[str, Any]:
        """For JSON."""
        rows = [dict(zip(self.heads, row, strict=True)) for row in self.rows]
        return {"title": self.title, "says": self.says, "rows": rows}


@dataclass(frozen=True)
class Report:
    """What an evaluation found. Nothing in it is rounded."""

    figures: tuple[Figure, ...] = ()  # clean first, then of each threat model its attacks in order, then the union
    curves: tuple[tuple[Figure, ...], ...] = ()  # of each threat model accuracy against eps, clean first
    budgets: tuple[Budget, ...] = ()  # accuracy against steps, for the attacks that count them
    columns: tuple[str, ...] = ()  # what the classes' columns after the first are of: "clean", "linf/autoattack", ...
    classes: tuple[tuple[float, ...], ...] = ()  # (images, right in each column) of each class
    flags: tuple[Flag, ...] = ()  # everything that was looked for
    tables: tuple[Table, ...] = ()  # whatever else there is to say in numbers
    result: Any = None  # the same as a value of the analysis' own: of transfer its matrix
    names: tuple[str, ...] = ()  # of the classes
    preprocessing: tuple[str, ...] = ()  # what the pixels went through before the network saw them, in order
    right: Mapping[str, Tensor] = field(default_factory=dict)  # by figure [N]: share of the passes that were right
    spent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by attack: forwards, backwards, steps [N]
    points: Mapping[str, Tensor] = field(default_factory=dict)  # by threat model [N, ...]: the worst points, if kept

    @property
    def clean_accuracy(self) -> float:
        """Share of the images that are right as they are."""
        return self.figures[0].accuracy

    @property
    def robust_accuracy(self) -> float:
        """Share that is right as it is and after every attack, in every threat model: an upper bound."""
        return self.figures[-1].accuracy

    @property
    def accuracies(self) -> dict[str, float]:
        """Every accuracy by its name: "clean", "linf/pgd50", "linf/autoattack", "union"."""
        return {figure.title: figure.accuracy for figure in self.figures}

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """{class: {"images": count, figure: accuracy}}; classes without an image are left out."""
        rows = zip(self.names, self.classes, strict=False)
        return {
            name: {"images": row[0], **{what: n / row[0] for what, n in zip(self.columns, row[1:], strict=True)}}
            for name, row in rows
            if row[0]
        }

    @property
    def adversarial(self) -> Tensor:
        """The worst points [N, ...] of the only threat model; of several take `points`. ConfigError where none is kept.

        Of an image that fell the point where it first did; of one that stands the last attack's.
        """
        if len(self.points) != 1:
            kept = (
                f"of {', '.join(self.points)}: take report.points[...]" if self.points else "not kept: say points=True"
            )
            raise ConfigError(f"adversarial images are {kept}")
        return next(iter(self.points.values()))

    def to_dict(self) -> dict[str, Any]:
        """All of it but what is of each image, for JSON."""
        of_all = {"clean_accuracy": self.clean_accuracy, "robust_accuracy": self.robust_accuracy, "images": self.images}
        return {**of_all, **self.tree(list(self.names))}

    def to_json(self, path: str | Path | None = None) -> str:
        """The same as text; written to `path` too, where it is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        if path is not None:
            write_text(Path(path), text)
        return text

    def __str__(self) -> str:
        """What a reader wants first: accuracies with intervals, what they cost, and the flags that are up."""
        heads = ("", "threat", "eps", "accuracy", "95 % interval", *COSTS)
        rows = [_shown(figure) for figure in self.figures]
        costs = [place for place, _ in enumerate(heads) if place < 5 or any(row[place] for row in rows)]
        lines = aligned([tuple(row[place] for place in costs) for row in (heads, *rows)])
        up = [f"FLAG {flag.name}: {flag.says}" for flag in self.raised]
        looked = sum(flag.raised is not None for flag in self.flags)
        seen = [f"pixels: {step}" for step in self.preprocessing]
        return "\n".join([f"{self.images:,} images", *seen, *lines, *up, f"flags: {len(up)} of {looked} are up"])

    @property
    def images(self) -> int:
        """Images that were judged."""
        return self.figures[0].images

    @property
    def raised(self) -> tuple[Flag, ...]:
        """The flags that are up."""
        return tuple(flag for flag in self.flags if flag.raised)

    def tree(self, names: list[str]) -> dict[str, Any]:
        """For JSON; names: of the classes."""
        heads = ("images", *(f"right/{column}" for column in self.columns))
        return {
            "figures": [figure.tree() for figure in self.figures],
            "curves": [[figure.tree() for figure in curve] for curve in self.curves],
            "budgets": [budget.tree() for budget in self.budgets],
            "classes": [
                {"class": name, **dict(zip(heads, row, strict=True))}
                for name, row in zip(names if self.classes else [], self.classes, strict=True)
            ],
            "flags": [flag.tree() for flag in self.flags],
            **({"tables": [table.tree() for table in self.tables]} if self.tables else {}),
            **({"preprocessing": list(self.preprocessing)} if self.preprocessing else {}),
        }


COSTS = ("forwards", "backwards")  # what an attacked image cost on average


def _shown(figure: Figure) -> tuple[str, ...]:
    low, high = figure.interval if figure.images else (math.nan, math.nan)
    eps = f"{figure.eps:.4g}" if figure.eps else ""
    costs = ("" if (count := figure.cost.get(name)) is None else f"{count:,.1f}" for name in COSTS)
    name = f"  {figure.name}" if figure.part else figure.name
    return name, figure.threat, eps, f"{figure.accuracy:.2%}", f"{low:.1%} to {high:.1%}", *costs


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose first row is its heads: names to the left, numbers to the right."""
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    cells = (
        [c.ljust(w) if place < 2 else c.rjust(w) for place, (c, w) in enumerate(zip(r, wide, strict=True))]
        for r in rows
    )
    lines = ["  ".join(row).rstrip() for row in cells]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def wilson(accuracy: float, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a fraction of n images: where (p - accuracy)^2 <= z^2 p (1 - p) / n."""
    if images < 1:
        raise ValueError(f"images={images} must be at least 1: an interval needs images")
    shrink = 1 + z * z / images
    centre = (accuracy + z * z / (2 * images)) / shrink
    half = z / shrink * math.sqrt(accuracy * (1 - accuracy) / images + (z / (2 * images)) ** 2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def versions() -> dict[str, str]:
    """Of what decides numbers."""
    import timm

    import robust_train

    return {
        "robust_train": robust_train.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def circumstances(device: torch.device | str, began: float) -> dict[str, Any]:
    """With what and how long: versions, hardware, seconds since `began` (time.monotonic)."""
    named = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else platform.processor()
    return {
        "versions": versions(),
        "device": f"{device}: {named or platform.machine()}",
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - began, 3),
    }


def put(tree: dict[str, Any], target: Path) -> list[str]:
    """Write a report as JSON, a file whole or not at all. Returns what there is to say of one whose place it took."""
    text = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: neither read nor replaced
        target.write_text(text, encoding="utf-8")
        return []
    try:
        before = json.loads(target.read_text(encoding="utf-8"))["command"] if target.exists() else tree["command"]
    except (ValueError, TypeError, KeyError):
        before = "another program"
    write_text(target, text)
    if before == tree["command"]:
        return []
    return [
        f"note: {target} held the report of: {before}",
        "      Its verdicts are kept, so that the same command writes it again at once; --json FILE keeps both.",
    ]
