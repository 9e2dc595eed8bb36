"""Accuracy on images that a network of ImageNet's classes was not trained for, and what it lost."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard
from robust_train.tools import shared

if TYPE_CHECKING:
    from robust_train.evaluate.shifts import Shifts
    from robust_train.subject import Subject

EPILOG = f"""examples
  python -m tools.eval shift runs/vit --sets imagenet-a=/data/imagenet-a imagenet-r=/data/imagenet-r
  python -m tools.eval shift runs/vit --sets imagenet-v2=/data/v2 --imagenet /data/val --ground-truth /data/truth.txt
      beside the accuracy on ImageNet's own images of the same classes, and the gap
  python -m tools.eval shift --model resnet50 --weights r50.safetensors --sets objectnet=/data/objectnet --devices 8

how to read it
  A set has some of ImageNet's 1,000 classes: the network answers among those alone, as the sets' authors have it; of
  imagenet-real an image has several right answers. A gap compares with ImageNet's images of the very same classes.
  Images are prepared as the run had it, or as the timm model's own evaluation.

{shared.GOES_ON}"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval shift", __doc__, EPILOG)
    shared.of_network(parser.add_argument_group("what is judged"))
    where = parser.add_argument_group("on which images")
    where.add_argument(
        "--sets",
        nargs="+",
        type=place,
        required=True,
        metavar="NAME=PATH",
        help="imagenet-a, -r, -sketch, -v2, -real, objectnet, stylized-imagenet: class folders or shards",
    )
    where.add_argument("--labels", metavar="FOLDER", help="label files named as timm's (timm's own)")
    where.add_argument("--imagenet", metavar="FOLDER", help="ImageNet's validation images, for the gap")
    where.add_argument("--ground-truth", metavar="FILE", help="of --imagenet, where it is a flat folder: its labels")
    shared.of_amount(where)
    out = parser.add_argument_group("where and whither")
    shared.of_devices(out)
    shared.of_report(out, "eval-shifts.json")
    found = parser.parse_args(words)
    shared.check(parser, found)
    return found


def place(text: str) -> tuple[str, str]:
    """imagenet-a=PATH."""
    name, separator, path = text.partition("=")
    if not name or not separator or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=PATH: write imagenet-a=/data/imagenet-a")
    return name, path


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_shifts

    asked, began = arguments(words), time.monotonic()
    device, subject = shared.device_of(asked), shared.subject_of(asked)
    target = Path(asked.json) if asked.json else subject.home / "eval-shifts.json"
    writable(target.parent, "--json FILE")
    networks = subject.networks(device)
    ((_, network),) = networks.items()
    seen = prepared(subject, network)
    shifts = wanted(asked, seen)
    dealt = shared.deal(asked, subject, device)
    if subject.shape[0] != 3:
        raise ConfigError(f"these sets show colour images, but {subject.title} takes grey ones: give another network")
    for shift in shifts.sets.values():
        shift.fits(network.classes)
        shift.prepare()
    store = Store(subject.home / "eval", subject.fingerprints)
    with telling() as tell:
        found = evaluate(shifts, networks, shifts.wanted[0], 0, device, store, dealt, tell, asked.workers)
    shared.resumed(store)
    result = shifts.report(found).result
    show_shifts(subject.title, result)
    if shifts.imagenet is None:
        print("note: without --imagenet FOLDER there is no clean accuracy on the same classes, and no gap")
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", "shift", *words]),
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
        sets = tuple(one for name, path in asked.sets for one in shifts(name, whole(path), **fields))
        return Shifts(sets, imagenet, asked.chunk, asked.images)
    except ValueError as error:
        raise ConfigError(f"--sets: {error}") from error


def whole(path: Any) -> Any:
    """A path as other processes find it; addresses and what is not said stay."""
    from robust_train.data.manifest import remote

    return path if path is None or remote(path) else str(Path(path).expanduser().absolute())
