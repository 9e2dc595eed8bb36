"""What the numbers of a run are called: unit, and what each is a mean over. `--list metrics`, docs/metrics.md.

Names that one objective alone writes stand with its class (`Objective.tells`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from robust_train.nouns import Objective

LINE, JUDGED, TIMES, END = "metrics.jsonl", "metrics.jsonl, judged", "timing.jsonl", "summary.json"
FILES = {
    LINE: 'metrics.jsonl: one line an update. Functions of the run only; not finite is "nan", "inf", "-inf"',
    JUDGED: "metrics.jsonl: lines of validation, a probe, the final evaluation (its update is the run's last + 1)",
    TIMES: "timing.jsonl: a line every records.every updates. What depends on the machine",
    END: "summary.json: beside the final evaluation's accuracies",
}
BATCH = "the update's images"
IMAGES = "validation images"
ALL = "nothing: one number"


@dataclass(frozen=True)
class Name:
    """A name that is written. Capitals in it stand for any words: accuracy/ATTACK is accuracy/pgd10."""

    name: str
    unit: str
    over: str  # what it is a mean over
    what: str
    file: str = LINE

    def fits(self, written: str) -> bool:
        """Whether a written name is this one."""
        pattern = "".join(".+" if part.isupper() else re.escape(part) for part in re.split(r"([A-Z]{2,})", self.name))
        return re.fullmatch(pattern, written) is not None


NAMES = (
    Name("update", "updates", ALL, "which update, from 0"),
    Name("loss/clean", "nats", BATCH, "cross-entropy on clean images, in the training forward"),
    Name("loss/robust", "nats", BATCH, "the loss on attacked images, in the training forward"),
    Name("accuracy/clean", "share", BATCH, "right on clean images, in the training forward"),
    Name("accuracy/attacked", "share", BATCH, "right on the training attack's images, in the training forward"),
    Name("gradient/norm", "loss / weight", ALL, "L2 norm of the global batch's gradient, before clipping"),
    Name("gradient/norm/PART", "loss / weight", ALL, "the same of a part that the objective owns"),
    Name("lr", "weight / gradient", ALL, "learning rate of the update"),
    Name("lr/PART", "weight / gradient", ALL, "the same of a part that the objective owns"),
    Name("data/broken", "images", ALL, "images of the global batch that could not be decoded: a sum"),
    Name("left_out", "1", ALL, "1: the update was passed over, as on_nonfinite says; nothing else is written of it"),
    Name("branch/updates", "updates", ALL, "where this run goes on from what it branches from"),
    Name("accuracy/clean", "share", IMAGES, "right on clean images; averaged weights where they are kept", JUDGED),
    Name("accuracy/ATTACK", "share", IMAGES, "right under an attack, by its label (pgd10: 10 steps)", JUDGED),
    Name("validation/images", "images", ALL, "how many were judged: validate.images, at the end all", JUDGED),
    Name("probe/ATTACK", "share", "the batch's first probe.images images", "right under the probe's attack", JUDGED),
    Name("probe/collapsed", "0 or 1", ALL, "1: it fell by more than probe.fall since the last probe", JUDGED),
    Name("time/run", "s", ALL, "since this start", TIMES),
    Name("time/update", "s", "the last 200 updates of this start", "an update, validation and all", TIMES),
    Name("images/s", "images / s", "the last 200 updates of this start", "images trained on", TIMES),
    Name("memory/host", "MiB", ALL, "the most that the leading process has held", TIMES),
    Name("memory/device", "MiB", ALL, "the most that its GPU has held for it", TIMES),
    Name("updates", "updates", ALL, "done", END),
    Name("evaluation/seconds", "s", ALL, "what the final evaluation took", END),
    Name("images", "images", ALL, "trained on since this start", END),
    Name("seconds", "s", ALL, "of training since this start", END),
    Name("images/s", "images / s", "this start", "images trained on", END),
    Name("probe/collapses", "probes", ALL, "how many saw a collapse", END),
)


def own(kind: type[Objective]) -> list[Name]:
    """The names that an objective alone writes."""
    return [Name(name, unit, BATCH, what) for name, unit, what in kind.tells]


def unlisted(written: Iterable[str], objective: Any = None, files: Iterable[str] = (LINE, JUDGED)) -> list[str]:
    """Those of the names written that nothing says the meaning of. objective: the run's, and those inside it."""
    known = [name for name in NAMES if name.file in files]
    while objective is not None:
        known += own(type(objective))
        held = (getattr(objective, field.name) for field in fields(objective))
        objective = next((one for one in held if isinstance(one, Objective)), None)
    return [name for name in dict.fromkeys(written) if not any(one.fits(name) for one in known)]


def listed() -> str:
    """What `--list metrics` prints: every name, in a file's order; then those of single objectives."""
    lines = ["metrics:"]
    for heading, names in _groups():
        lines += [f"  {heading}"]
        wide = max(len(one.name) for one in names)
        lines += [f"    {one.name:<{wide}}  {one.unit}; {one.what}{_mean(one)}" for one in names]
    return "\n".join(lines)


def page() -> str:
    """The same as docs/metrics.md."""
    lines = [
        "# What the numbers are called",
        "",
        "What `python -m launch.train --list metrics` prints; W&B has the same names. Capitals stand for any words.",
        "A mean over the update's images is one over the global batch, however many ranks and micro-batches have it.",
    ]
    for heading, names in _groups():
        lines += ["", f"## {heading}", "", "| name | unit | mean over | what |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{one.name}` | {one.unit} | {'' if one.over == ALL else one.over} | {one.what} |" for one in names
        ]
    return "\n".join(lines) + "\n"


def _groups() -> list[tuple[str, list[Name]]]:
    """(heading, names): of each file, then of each objective that has names of its own."""
    from robust_train.read.registry import objectives

    found = [(heading, [one for one in NAMES if one.file == file]) for file, heading in FILES.items()]
    return found + [(f"objective {use}", own(kind)) for use, kind in objectives.items() if kind.tells]


def _mean(one: Name) -> str:
    return "" if one.over == ALL else f"; mean over {one.over}"
