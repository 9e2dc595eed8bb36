"""Accuracy under ImageNet-C's corruptions at five severities, made here or stored; mCE, and the gain over another."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, DataError, main_guard
from robust_train.tools import shared

if TYPE_CHECKING:
    from robust_train.evaluate.corruption_work import Course
    from robust_train.evaluate.corruptions import Robustness
    from robust_train.nouns import Dataset

EPILOG = f"""examples
  python -m tools.eval corruptions runs/vit --frost /data/frost
      the 15 of ImageNet-C; frost needs its textures
  python -m tools.eval corruptions runs/cifar10 --kinds noise,blur,digital,snow,fog,brightness
      categories and names; validation: the 4 others
  python -m tools.eval corruptions runs/vit --stored /data/imagenet-c
      published images in place of ones made here: ImageNet-C's folders, or CIFAR-10-C's npy files
  python -m tools.eval corruptions runs/b --base runs/a/eval-corruptions.json
      with the gain over another network, judged on the same images

how to read it
  Accuracies by corruption and severity, and means over whole groups only. mCE compares with AlexNet on ImageNet at 224
  pixels: there are figures of it nowhere else. A gain is of accuracies, in percent of the other network's.

{shared.GOES_ON}"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval corruptions", __doc__, EPILOG)
    shared.of_network(parser.add_argument_group("what is judged"))
    where = parser.add_argument_group("on which images")
    shared.of_images(where)
    where.add_argument(
        "--kinds",
        default="all",
        metavar="all|validation|noise|fog,snow",
        help="the 15, the 4 others, a category, or names (%(default)s)",
    )
    where.add_argument("--frost", metavar="FOLDER", help="frost1 to frost5, the textures of frost")
    where.add_argument("--stored", metavar="FOLDER", help="published images, such as ImageNet-C's")
    where.add_argument("--order", metavar="FILE", help="of --stored: classes.json, the labels of its folders (sorted)")
    where.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    out = parser.add_argument_group("where and whither")
    out.add_argument("--base", metavar="FILE", help="another's eval-corruptions.json, for the gain")
    shared.of_devices(out)
    shared.of_report(out, "eval-corruptions.json")
    out.add_argument("--pictures", metavar="FOLDER", help="the picture eval-corruptions.png (beside the report)")
    found = parser.parse_args(words)
    if found.listed is not None and found.stored:
        parser.error("--list takes images out of the run's shards: it says nothing of --stored")
    shared.check(parser, found, "data")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report and the picture."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.records.corruption_pictures import robustness
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_corruptions

    asked, began = arguments(words), time.monotonic()
    device, subject = shared.device_of(asked), shared.subject_of(asked)
    target = Path(asked.json) if asked.json else subject.home / "eval-corruptions.json"
    picture = Path(asked.pictures or target.parent) / "eval-corruptions.png"
    writable(target.parent, "--json FILE")
    writable(picture.parent, "--pictures FOLDER")
    networks, data = subject.networks(device), subject.images()
    ((_, network),) = networks.items()
    size = side(data)
    course = wanted(asked, network.classes, size, data.shape[0])
    identity = subject.identity(data)
    on = course.on({name: identity[name] for name in ("data", "listed") if name in identity}, asked.seed)
    base = None if asked.base is None else of_base(Path(asked.base), on)
    store = Store(subject.home / "eval", subject.fingerprints)
    dealt = shared.deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(course, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    shared.resumed(store)
    result = course.report(found).result
    gain = None if base is None else result.gain(base)
    show_corruptions(subject.title, result, gain)
    noise = subject.noise_of(network)
    notes = said(result, network.classes, size) + shared.of_subject(subject, noise, data)
    for note in notes:
        print(f"note: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(robustness(result, subject.title, base))
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", "corruptions", *words]),
        "model": subject.title,
        "weights": subject.source,
        "noise": noise,
        "identity": identity,
        "on": on,
        **result.tree(),
        "base": asked.base,
        "gain": None if gain is None else gain.tree(),
        "notes": notes,
        "pictures": [str(picture)],
        "verdicts": os.path.relpath(store.home(), target.parent),
        **circumstances(device, began),
    }
    replaced = put(tree, target)
    print(f"picture: {picture}\nreport: {target}", *replaced, sep="\n")


def side(data: Dataset) -> int:
    """Of the square images that the network takes, in pixels."""
    if not data.validation_size():
        raise ConfigError("there are no images to judge: name validation shards (--data)")
    return data.shape[-1]


def wanted(asked: argparse.Namespace, classes: int, size: int, channels: int) -> Course:
    """What is done to the images. Raises ConfigError or DataError before any work for what could not be done."""
    from robust_train.data.corruptions import named
    from robust_train.data.stored_corruptions import StoredArrays, stored
    from robust_train.evaluate.corruption_work import Course

    for name in ("chunk", "images"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            raise ConfigError(f"--{name} {getattr(asked, name)} must be at least 1")
    names = named(asked.kinds)
    published = None
    if asked.stored is not None:
        folder, order = Path(asked.stored).expanduser().absolute(), asked.order
        if channels != 3:
            raise ConfigError(f"--stored {asked.stored} holds colour images, but the network takes {channels} channel")
        published = stored(folder, classes, size, None if order is None else Path(order).expanduser().absolute())
        there = published.corruptions()
        if not there:
            kind = "npy files" if isinstance(published, StoredArrays) else "folders CORRUPTION/SEVERITY"
            raise DataError(f"--stored {asked.stored} holds no corruption ({kind}). Name the folder that was unpacked.")
        lacking = [name for name in names if name not in there]
        if lacking and asked.kinds not in ("all", "validation"):
            published.at(lacking[0], 1)  # says what is there
        names = tuple(name for name in names if name in there)
        if not names:
            raise ConfigError(f"--stored {asked.stored} holds none of --kinds {asked.kinds}")
        for name in names:
            published.at(name, 1).prepare()
    elif asked.order is not None:
        raise ConfigError("--order says what is in a folder of stored images: name it by --stored FOLDER")
    frosty = published is None and "frost" in names and asked.frost is not None
    frost = str(Path(asked.frost).expanduser().absolute()) if frosty else None
    course = Course(names, asked.chunk, asked.images, frost, published)
    course.check(size, "--frost FOLDER")
    return course


def of_base(path: Path, on: dict[str, Any]) -> Robustness:
    """Another network's accuracies. Raises DataError for no report, ConfigError for one on other images."""
    from robust_train.evaluate.corruptions import Robustness

    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        found, other = Robustness.of(tree), dict(tree["on"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--base {path} is no report of corruptions ({type(error).__name__}: {error}). Name another's "
            "eval-corruptions.json."
        ) from error
    for name in ("data", "listed", "images", "seed", "stored", "frost"):
        mine, theirs = on.get(name), other.get(name)
        if name in ("stored", "frost") and mine and theirs:  # where each was judged under some corruptions
            mine, theirs = ({key: one[key] for key in mine.keys() & theirs.keys()} for one in (mine, theirs))
        if mine != theirs and not (name == "frost" and None in (mine, theirs)):
            raise ConfigError(
                f"--base {path} was judged on other images ({name}: {_short(theirs)}, here {_short(mine)}): a gain "
                "would compare two things. Judge both on the same."
            )
    return found


def said(result: Robustness, classes: int, size: int) -> list[str]:
    """What a reader must know beside the figures."""
    from robust_train.evaluate.corruptions import ALEXNET_SIZE

    notes = []
    if size != ALEXNET_SIZE:
        notes.append(f"mCE compares with AlexNet on ImageNet at {ALEXNET_SIZE} pixels: at {size} there is none")
    elif classes != 1000:
        notes.append(f"mCE is for ImageNet's 1,000 classes: AlexNet's errors say little of {classes:,} classes")
    if result.mean is None:
        notes.append("means are over whole groups only: a group that was not judged whole has none")
    return notes


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"
