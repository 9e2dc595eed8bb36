"""Accuracy under common corruptions, made here or stored: tools.eval --corruptions."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, DataError

if TYPE_CHECKING:
    from robust_train.evaluate.corruption_work import Course
    from robust_train.evaluate.corruptions import Robustness
    from robust_train.nouns import Dataset
    from robust_train.subject import Subject

SHIFTS = ("labels", "imagenet", "ground_truth")
CORRUPTIONS = ("frost", "stored", "order", "base")
ATTACKS = ("attack", "threat", "eps", "steps", "step_size", "restarts", "curve", "checks", "html", "wandb")  # by flag
Deal = Callable[..., Any]
"""tools.eval's own: who does the work, where it is not this process alone."""
Notes = Callable[..., list[str]]
"""tools.eval's own: what a reader must know of the network."""


def flags(group: argparse._ArgumentGroup) -> None:
    """What is asked of corruptions."""
    group.add_argument(
        "--corruptions",
        nargs="?",
        const="all",
        metavar="all|validation|noise|fog,snow",
        help="accuracy under ImageNet-C's corruptions at 5 severities: the 15, the 4 others, a category, or names",
    )
    group.add_argument("--frost", metavar="FOLDER", help="of --corruptions: frost1 to frost5, the textures of frost")
    group.add_argument("--stored", metavar="FOLDER", help="of --corruptions: published images, such as ImageNet-C's")
    group.add_argument("--order", metavar="FILE", help="of --stored: classes.json, the labels of its folders (sorted)")
    group.add_argument("--base", metavar="FILE", help="of --corruptions: another's eval-corruptions.json, for the gain")


def check(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Refuse what says nothing beside what else is asked for."""
    if found.listed is not None and (found.shift or found.stored):
        parser.error("--list takes images out of the run's shards: it says nothing of --shift or --stored")
    if found.shift and found.corruptions:
        parser.error("--shift and --corruptions are two reports: ask for one at a time")
    if found.evaluator and (found.shift or found.corruptions):
        parser.error("--evaluator is a report of its own: ask for one at a time")
    instead = "--shift" if found.shift else "--corruptions" if found.corruptions else None
    instead = "--evaluator" if found.evaluator else instead
    ours = {"--shift": SHIFTS, "--corruptions": CORRUPTIONS}
    strange = [*(ATTACKS if instead else ())]
    strange += [name for one, names in ours.items() if one != instead for name in names]
    given = [name for name in strange if getattr(found, name, None) != parser.get_default(name)]
    if given:
        words = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(f"{words} says nothing {f'beside {instead}' if instead else 'without --shift or --corruptions'}")


def judge(
    asked: argparse.Namespace,
    subject: Subject,
    device: str,
    words: list[str],
    deal: Deal,
    of_subject: Notes,
    resumed: Notes,
) -> None:
    """Judge, show, and write the report and the picture."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.records.corruption_pictures import robustness
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_corruptions

    began = time.monotonic()
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
    dealt = deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(course, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    resumed(store)
    result = course.report(found).result
    gain = None if base is None else result.gain(base)
    show_corruptions(subject.title, result, gain)
    noise = subject.noise_of(network)
    notes = said(result, network.classes, size) + of_subject(subject, noise, data)
    for note in notes:
        print(f"note: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(robustness(result, subject.title, base))
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", *words]),
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
    names = named(asked.corruptions)
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
        if lacking and asked.corruptions not in ("all", "validation"):
            published.at(lacking[0], 1)  # says what is there
        names = tuple(name for name in names if name in there)
        if not names:
            raise ConfigError(f"--stored {asked.stored} holds none of --corruptions {asked.corruptions}")
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
            f"--base {path} is no report of --corruptions ({type(error).__name__}: {error}). Name another's "
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
