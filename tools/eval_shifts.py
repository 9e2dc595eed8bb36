"""Accuracy on images that a network of ImageNet's classes was not trained for: tools.eval --shift."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError

if TYPE_CHECKING:
    from robust_train.evaluate.shifts import Shifts
    from robust_train.subject import Subject

Deal = Callable[..., Any]
"""tools.eval's own: who does the work, where it is not this process alone."""
Resumed = Callable[..., Any]
"""tools.eval's own: says what an earlier start had made."""


def flags(group: argparse._ArgumentGroup) -> None:
    """What is asked of shifts."""
    group.add_argument(
        "--shift",
        nargs="+",
        type=place,
        metavar="NAME=PATH",
        help="accuracy on imagenet-a, -r, -sketch, -v2, -real, objectnet, stylized-imagenet: class folders or shards",
    )
    group.add_argument("--labels", metavar="FOLDER", help="of --shift: label files named as timm's (timm's own)")
    group.add_argument("--imagenet", metavar="FOLDER", help="of --shift: ImageNet's validation images, for the gap")
    group.add_argument("--ground-truth", metavar="FILE", help="of --imagenet, where it is a flat folder: its labels")


def place(text: str) -> tuple[str, str]:
    """imagenet-a=PATH."""
    name, separator, path = text.partition("=")
    if not name or not separator or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=PATH: write imagenet-a=/data/imagenet-a")
    return name, path


def judge(
    asked: argparse.Namespace, subject: Subject, device: str, words: list[str], deal: Deal, resumed: Resumed
) -> None:
    """Judge, show, and write the report."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_shifts

    began = time.monotonic()
    target = Path(asked.json) if asked.json else subject.home / "eval-shifts.json"
    writable(target.parent, "--json FILE")
    networks = subject.networks(device)
    ((_, network),) = networks.items()
    seen = prepared(subject, network)
    shifts = wanted(asked, seen)
    dealt = deal(asked, subject, device)
    if subject.shape[0] != 3:
        raise ConfigError(f"--shift shows colour images, but {subject.title} takes grey ones: give another network")
    for shift in shifts.sets.values():
        shift.fits(network.classes)
        shift.prepare()
    store = Store(subject.home / "eval", subject.fingerprints)
    with telling() as tell:
        found = evaluate(shifts, networks, shifts.wanted[0], 0, device, store, dealt, tell, asked.workers)
    resumed(store)
    result = shifts.report(found).result
    show_shifts(subject.title, result)
    if shifts.imagenet is None:
        print("note: without --imagenet FOLDER there is no clean accuracy on the same classes, and no gap")
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", *words]),
        "model": subject.title,
        "weights": subject.source,
        "noise": subject.noise_of(network),
        "identity": {
            **subject.identity(None),
            "data": {name: shift.checksums() for name, shift in shifts.sets.items()},
        },
        "images": shifts.images,
        "prepared": seen,
        "shifts": [one.tree() for one in result],
        "verdicts": {name: os.path.relpath(store.home(name), target.parent) for name in shifts.sets},
        **circumstances(device, began),
    }
    replaced = put(tree, target)
    print(f"report: {target}", *replaced, sep="\n")


def prepared(subject: Subject, network: Any) -> dict[str, Any]:
    """How images are made ready, as fields of a shift: as the run had it, or as the timm model's own evaluation."""
    from robust_train.evaluate.shifts import preprocessing

    if subject.run is None:
        own = {"size": subject.shape[-1], **preprocessing(network)}
        return own if subject.crop is None else {**own, "crop": subject.crop}
    data: Any = subject.run.data
    names = ("crop", "interpolation", "workers")
    return {"size": data.shape[-1]} | {name: getattr(data, name) for name in names if hasattr(data, name)}


def wanted(asked: argparse.Namespace, seen: dict[str, Any]) -> Shifts:
    """The sets and how much of them. Raises ConfigError."""
    from robust_train.data.shifts import ImageNet, shifts
    from robust_train.evaluate.shifts import Shifts

    fields = {"labels": whole(asked.labels), **seen}
    imagenet = None
    if asked.imagenet is not None:
        imagenet = ImageNet(whole(asked.imagenet), ground_truth=whole(asked.ground_truth), **fields)
    elif asked.ground_truth is not None:
        raise ConfigError("--ground-truth says what is in a folder of ImageNet: name it by --imagenet FOLDER")
    try:
        sets = tuple(one for name, path in asked.shift for one in shifts(name, whole(path), **fields))
        return Shifts(sets, imagenet, asked.chunk, asked.images)
    except ValueError as error:
        raise ConfigError(f"--shift: {error}") from error


def whole(path: Any) -> Any:
    """A path as other processes find it; addresses and what is not said stay."""
    from robust_train.data.manifest import remote

    return path if path is None or remote(path) else str(Path(path).expanduser().absolute())
