"""Who is fooled by what was made for whom: networks tried on each other's adversarial images, with controls."""

from __future__ import annotations

import argparse
import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import word
from robust_train.tools import eval_attack, shared
from robust_train.tools.shared import number

if TYPE_CHECKING:
    from robust_train.nouns import Attack, Dataset, Threat
    from robust_train.subject import Subject

WITHIN = ("fab",)  # attacks that look for the nearest point, and are used within a ball all the same

EPILOG = """examples
  python -m tools.eval transfer runs/a runs/b runs/c
      each one's PGD-50 examples on all three, in the first run's threat model
  python -m tools.eval transfer runs/a runs/b --attack mi-fgsm --threat linf --eps 16/255 --images 1000 --devices 8
      momentum: made to carry over; chunks dealt over a Ray cluster
  python -m tools.eval transfer runs/half-1 runs/half-2 --attack lbfgs --images 100 --amplify 0.1
      the tables of Szegedy et al. 2014: nearest examples in no ball, the same amplified to an RMS of 0.1
  python -m tools.eval transfer resnet50=r50.safetensors vit_base_patch16_224=vit.pth --data 'val-*.tar' --eps 4/255
      timm models with local weights

how to read it
  A row is the network that the examples were made for, a column the one they are tried on. Only images that the row's
  network is right on are attacked, and only examples that fool it count, so the diagonal is 100 %. Two rates are given:
  the error rate over all these examples (Szegedy's), and the rate over those of them whose clean image the column's
  network is right on too, which leaves out what it was wrong on anyway.
  Controls: Gaussian noise of each example's own size (root mean square); with --amplify the examples made as large as
  that, and noise as large. Everything is clipped to [0, 1], which makes it smaller: the RMS shown is that after it.
  Examples carry over where the rates of "found" lie well above those of "noise".

it goes on
  Each finished piece (a chunk of images and the network attacked) is kept below --folder: the same command again goes
  on where it was killed, and gives the same matrix.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval transfer", __doc__, EPILOG)
    what = parser.add_argument_group("who is tried")
    what.add_argument(
        "networks",
        nargs="+",
        metavar="CHECKPOINT",
        help="a run's folder, a checkpoint, an ensemble's file; or TIMM-MODEL=WEIGHTS-FILE",
    )
    what.add_argument("--raw", action="store_true", help="the weights themselves where a run kept an average too")
    what.add_argument("--classes", type=int, default=1000, help="classes of timm models (%(default)s)")
    what.add_argument("--size", type=int, default=224, help="image side of timm models (%(default)s)")
    shared.of_uses(what)
    where = parser.add_argument_group("on which images")
    where.add_argument("--data", metavar="URL", help="shards: path, folder, glob, brace list or URL (the first run's)")
    shared.of_amount(where)
    how = parser.add_argument_group("attacked how")
    told = "any of `--list attacks` by name or {use: NAME, ...}, or MODULE:FUNCTION of your own (%(default)s)"
    how.add_argument("--attack", default="pgd", metavar="NAME", help=told)
    how.add_argument("--threat", metavar="NAME", help="the threat model: linf, l2, l1, l0 (the first run's, else linf)")
    told = "its radius, such as 8/255 (the first run's; attacks that look for the nearest point: none)"
    how.add_argument("--eps", type=number, help=told)
    how.add_argument("--steps", type=int, help="of the attack (pgd, deepfool 50, mi-fgsm 10, lbfgs 100, ...)")
    how.add_argument("--restarts", type=int, default=1, help="of pgd: random starts; the worst counts (%(default)s)")
    how.add_argument("--amplify", type=number, metavar="RMS", help="try the examples made so large too, such as 0.1")
    how.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    out = parser.add_argument_group("where and whither")
    shared.of_devices(out)
    out.add_argument("--folder", default="runs/transfer", help="of transfer.json and transfer.png (%(default)s)")
    found = parser.parse_args(words)
    if len(found.networks) < 2:
        parser.error("a matrix needs two checkpoints at least: name another")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Try, show, and write the matrix and its picture."""
    from robust_train.check import writable
    from robust_train.disk import write_json
    from robust_train.evaluate.report import circumstances
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.transferability import Transferability, alike
    from robust_train.evaluate.work import evaluate
    from robust_train.read.parse import tree_of
    from robust_train.records.judging import telling
    from robust_train.records.pictures import heat_maps
    from robust_train.records.tables import show_transfers
    from robust_train.subject import Several

    asked, began = arguments(words), time.monotonic()
    device, folder = shared.device_of(asked), Path(asked.folder)
    writable(folder, "--folder FOLDER")
    subjects = named([subject_of(one, asked) for one in asked.networks])
    sets = {name: subject.images() for name, subject in subjects.items()}
    alike({name: (data.classes, data.shape) for name, data in sets.items()})
    (first, data), notes = next(iter(sets.items())), []
    for name, other in sets.items():
        if other.names() != data.names():
            raise ConfigError(f"{first} and {name} call their classes differently: they were trained on other data")
        if other.checksums() != data.checksums():
            notes.append(f"{name} has validation images of its own: all were tried on those of {first}")
    attack = attack_of(asked, next(iter(subjects.values())), data)
    try:
        trial = Transferability(attack, asked.amplify, asked.images, asked.chunk)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    several = Several(subjects)
    networks, store = several.networks(device), Store(folder / "pieces", several.fingerprints)
    dealt = shared.deal(asked, several, device)
    with telling() as tell:
        found = evaluate(trial, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    shared.resumed(store)
    matrix = trial.report(found).result
    show_transfers(matrix)
    for note in notes:
        print(f"note: {note}")
    panels = {f"{kind} (error, %)": matrix.rows(kind, lambda cell: cell.error) for kind in matrix.kinds}
    (folder / "transfer.png").write_bytes(heat_maps(panels, matrix.names, f"{attack.label}: made for, tried on"))
    write_json(
        folder / "transfer.json",
        {
            "command": shlex.join(["python", "-m", "tools.eval", "transfer", *words]),
            "identity": [{"name": name, **subject.identity(data)} for name, subject in subjects.items()],
            "weights": {name: subject.source for name, subject in subjects.items()},
            "transfer": tree_of(trial),
            "seed": asked.seed,
            **matrix.tree(),
            "notes": notes,
            "picture": str(folder / "transfer.png"),
            **circumstances(device, began),
        },
    )
    print(f"picture: {folder / 'transfer.png'}\nreport: {folder / 'transfer.json'}")


def subject_of(said: str, asked: argparse.Namespace) -> Subject:
    """A checkpoint, or a timm model and its weights: `resnet50=resnet50.safetensors`."""
    from robust_train.read.uses import bring
    from robust_train.subject import Subject

    bring(asked.uses, "--uses")

    model, _, weights = said.partition("=")
    weights = word(weights)
    if not weights or Path(said).exists():
        return Subject(checkpoint=said, averaged=not asked.raw, data=asked.data)
    return Subject(model=model, weights=weights, classes=asked.classes, size=asked.size, data=asked.data)


def named(subjects: list[Subject]) -> dict[str, Subject]:
    """Networks by short names: of the run's folder where that tells them apart, else of all that was said."""
    short = [subject.home.name if subject.model is None else subject.title for subject in subjects]
    names = short if len(set(short)) == len(short) else [subject.source for subject in subjects]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice} is named twice: a network's transfer to itself is the diagonal")
    return dict(zip(names, subjects, strict=True))


def attack_of(asked: argparse.Namespace, first: Subject, data: Dataset) -> Attack:
    """The attack that the examples are made by. Raises ConfigError where its threat model lacks an eps."""
    from robust_train.attacks.combine import Restarts
    from robust_train.door.identity import of_function
    from robust_train.door.named import attacks_of
    from robust_train.evaluate.transferability import Unbounded
    from robust_train.read.registry import attacks

    said = eval_attack.told(asked.attack)
    name = said.get("use") if isinstance(said, dict) else said
    nearest = isinstance(name, str) and name in attacks and hasattr(attacks[name], "nearest")
    free = nearest and asked.eps is None and name not in WITHIN
    threat = _whole(asked.threat or "l2", data) if free else threat_of(asked, first)
    if isinstance(said, str) and said == "apgd-t":
        said = {"use": "apgd", "steps": 100, "targets": min(9, data.classes - 1)}
    try:
        (made,), _ = attacks_of(said, (threat,), asked.steps, code=of_function)
        if asked.restarts > 1:
            if name != "pgd":
                raise ConfigError("--restarts is of pgd: of others write {use: restarts, attack: NAME, restarts: 5}")
            made = Restarts(made, asked.restarts)
    except ValueError as error:
        raise ConfigError(f"--attack {asked.attack}: {error}") from error
    return Unbounded(made) if free else made  # type: ignore[arg-type]


def _whole(use: str, data: Dataset) -> Threat:
    """In no ball: eps is that of the whole box, and is not looked at."""
    from robust_train.door.named import threats_of

    values = math.prod(data.shape)
    most = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values)}
    return threats_of({"use": use, "eps": most.get(use, float(values))})[0]


def threat_of(asked: argparse.Namespace, first: Subject) -> Threat:
    """The threat model that is named, or else the first run's."""
    from types import SimpleNamespace

    said = SimpleNamespace(
        threat=None if asked.threat is None else [asked.threat], eps=None if asked.eps is None else [asked.eps]
    )
    return eval_attack.threats_of(said, first)[0]  # type: ignore[arg-type]
