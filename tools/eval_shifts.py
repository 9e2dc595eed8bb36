"""Accuracy on images that a network of ImageNet's classes was not trained for: tools.eval --shift."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError

if TYPE_CHECKING:
    from robust_train.data.shift import Shift
    from robust_train.data.shifts import ImageNet
    from robust_train.evaluate.shifts import Watch
    from robust_train.records.judging import Tell
    from robust_train.subject import Subject


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


def judge(asked: argparse.Namespace, subject: Subject, device: str, words: list[str]) -> None:
    """Judge, show, and write the report. In one process: Ray deals attacks and corruptions only."""
    from robust_train.check import writable
    from robust_train.data.shifts import ImageNet, shifts
    from robust_train.evaluate.report import circumstances
    from robust_train.evaluate.shifts import compare
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_shifts

    began = time.monotonic()
    if asked.devices != 1 or asked.address is not None:
        raise ConfigError("--shift runs in one process: leave --devices and --address out, and say --device for a GPU")
    target = Path(asked.json) if asked.json else subject.home / "eval-shifts.json"
    writable(target.parent, "--json FILE")
    network = subject.network(device)
    seen = prepared(subject, network)
    wanted = [one for name, path in asked.shift for one in shifts(name, path, asked.labels, **seen)]
    imagenet = None
    if asked.imagenet is not None:
        imagenet = ImageNet(asked.imagenet, asked.labels, ground_truth=asked.ground_truth, **seen)
    elif asked.ground_truth is not None:
        raise ConfigError("--ground-truth says what is in a folder of ImageNet: name it by --imagenet FOLDER")
    if subject.run is not None and subject.run.data.channels != 3:
        raise ConfigError(f"--shift shows colour images, but {subject.title} takes grey ones: give another network")
    with telling() as tell:
        watch = watched(tell, wanted, imagenet, asked.images)
        found = compare(network, wanted, imagenet, device, watch, asked.chunk, asked.images)
    show_shifts(subject.title, found)
    if imagenet is None:
        print("note: without --imagenet FOLDER there is no clean accuracy on the same classes, and no gap")
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", *words]),
        "model": subject.title,
        "weights": subject.source,
        "noise": subject.noise_of(network),
        "identity": {
            "weights": subject.digest,
            "averaged": subject.averaged,
            **({} if subject.noise == "drawn" else {"noise": subject.noise}),
            "data": {one.label: one.checksums() for one in (*wanted, *([imagenet] if imagenet else []))},
        },
        "images": asked.images,
        "prepared": seen,
        "shifts": [one.tree() for one in found],
        **circumstances(device, began),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"report: {target}")


def prepared(subject: Subject, network: Any) -> dict[str, Any]:
    """How images are made ready, as fields of a shift: as the run had it, or as the timm model's own evaluation."""
    from robust_train.evaluate.shifts import preprocessing

    if subject.run is None:
        own = {"size": subject.size, **preprocessing(network)}
        return own if subject.crop is None else {**own, "crop": subject.crop}
    data: Any = subject.run.data
    names = ("size", "crop", "interpolation", "workers")
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def watched(tell: Tell, wanted: list[Shift], imagenet: ImageNet | None, images: int | None) -> Watch:
    """Who is told of the images of each set, and tells of the share of all."""
    from robust_train.data.shifts import ObjectNet, SomeClasses

    sets: dict[str, Shift] = {one.label: one for one in wanted}
    beside = [one for one in wanted if not isinstance(one, ObjectNet)] if imagenet is not None else []
    for one in beside:
        assert imagenet is not None
        clean = replace(imagenet, only=one.which if isinstance(one, SomeClasses) else None)
        sets.setdefault(clean.label, clean)
    counts = {name: min(images or one.validation_size(), one.validation_size()) for name, one in sets.items()}
    done = dict.fromkeys(counts, 0)

    def watch(name: str) -> Callable[[int, int], None]:
        def seen(count: int, right: int) -> None:
            done[name] = count
            tell(name, sum(done.values()) / max(sum(counts.values()), 1), f"{right / count:.1%} of {count:,}")

        return seen

    return watch
