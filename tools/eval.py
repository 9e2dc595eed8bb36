"""How well a network holds: clean accuracy, attacks in one or several threat models, curves, a table a class, flags."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import Parser
from tools import eval_corruptions, eval_other, eval_saved, eval_shifts

if TYPE_CHECKING:
    from robust_train.evaluate.robustness import Robustness
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.verdicts import Plan
    from robust_train.evaluate.work import Deal
    from robust_train.nouns import Dataset
    from robust_train.subject import Subject

EPILOG = """examples
  python -m tools.eval runs/demo
      the run's best checkpoint (else its newest), on its own validation images, threat model and eps, by PGD-50
  python -m tools.eval runs/demo --attack autoattack
      the field's measure: APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on the images still standing
  python -m tools.eval runs/demo --attack cr
      a quick estimate of AutoAttack (linf only), named as such
  python -m tools.eval runs/cifar10 --attack autoattack --threat linf l2 l1 --eps 8/255 0.5 12 --images 1000
      three threat models and their union
  python -m tools.eval runs/demo --threat l2 --eps 1.0 --steps 100 --restarts 5 --json l2.json
  python -m tools.eval --model resnet50 --weights resnet50.safetensors --data 'val-{0000..0049}.tar' --eps 4/255
  python -m tools.eval runs/demo --attack autoattack --devices 2 --wandb
  python -m tools.eval runs/demo --attack autoattack --save-adversarial set.pth
  python -m tools.eval runs/other --adversarial set.pth --eps 0.1
      another network on the images that were made for the first, checked again: shape, pixels, eps, same images
  python -m tools.eval ensemble.yaml --attack autoattack
      several networks as one (python -m tools.ensemble makes the file); so too with --corruptions and --shift
  python -m tools.eval runs/v1 --noise fixed --json fixed.json
      a network with noise of its own, judged without the randomness
  python -m tools.eval runs/vit --shift imagenet-a=/data/imagenet-a imagenet-r=/data/imagenet-r --imagenet /data/val
      in place of attacks: accuracy on other images of ImageNet's classes, and what it lost
  python -m tools.eval runs/vit --corruptions all --frost /data/frost
      in place of attacks: accuracy under ImageNet-C's 15 corruptions, and mCE
  python -m tools.eval runs/demo --evaluator lipschitz threat.eps=0.1 steps=20
      in place of attacks: any registered evaluator (python -m robust_train --list evaluators), and its fields

what the figures say
  A figure is an upper bound of robust accuracy and is named by its attack: a stronger one may find more. An image
  counts as robust that is right when clean and after every attack, over all images, those wrong from the start too.
  Intervals are Wilson's at 95 %, for the images as a draw from more of their kind. eps is in the threat model's unit:
  pixels in [0, 1] for linf (8/255 is eight grey levels), Euclidean length for l2, sum of changes for l1. Flags say what
  could have fooled the evaluation, whether it was seen, and what to do about it.

it goes on
  Each finished piece (a chunk of images and an attack) is kept below the run's eval/ folder: the same command again
  goes on where it was killed, and gives the same report. Devices change the time, not the verdicts.

from Python
  network = robust_train.load("runs/demo")              # or any module from images [B, C, H, W] in [0, 1] to logits
  adversarial = PGD(Linf(8 / 255), steps=20, step_size=2 / 255)(network, images, targets, Key(0))
"""


def number(text: str) -> float:
    """0.1 or 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write 0.03 or 8/255") from None


def of_network(what: argparse._ArgumentGroup) -> None:
    """The flags that name a network: those of robust_train.subject.Subject."""
    what.add_argument(
        "checkpoint",
        nargs="?",
        help="a run's folder (its best checkpoint, else its newest), a checkpoint, or the YAML file of an ensemble",
    )
    what.add_argument("--raw", action="store_true", help="the weights themselves where the run kept an average too")
    what.add_argument("--model", metavar="NAME", help="instead of a checkpoint: a timm model by name")
    what.add_argument("--weights", metavar="FILE", help="its weights: a local .safetensors, .pth or .pt file")
    what.add_argument("--classes", type=int, default=1000, help="classes of --model (%(default)s)")
    what.add_argument("--size", type=int, default=224, help="image side of --model (%(default)s)")
    what.add_argument("--crop", type=number, help="middle share of images for --model (its own, as timm says it)")
    told = "of the network itself, as a V1 front end's: as in training, one draw for all images, or none (%(default)s)"
    what.add_argument("--noise", choices=("drawn", "fixed", "off"), default="drawn", help=told)


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.eval", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    of_network(parser.add_argument_group("what is judged"))
    where = parser.add_argument_group("on which images")
    own = "shards (path, folder, glob, brace list, URL), class folders, or a .csv of path,label (the run's own)"
    where.add_argument("--data", metavar="URL", help=own)
    where.add_argument(
        "--list", metavar="FILE", dest="listed", help="names of images, one a line: those alone are judged"
    )
    where.add_argument("--images", type=int, help="the first so many (all)")
    where.add_argument("--chunk", type=int, default=256, help="consecutive images attacked together (%(default)s)")
    how = parser.add_argument_group("attacked how")
    how.add_argument("--attack", choices=kinds(), default="pgd", help="(%(default)s)", metavar="|".join(kinds()))
    how.add_argument("--threat", nargs="+", choices=("linf", "l2", "l1"), help="threat models (the run's, else linf)")
    how.add_argument("--eps", nargs="+", type=number, help="their radii, such as 8/255 (the run's)")
    how.add_argument("--steps", type=int, default=50, help="of pgd (%(default)s)")
    how.add_argument("--step-size", type=number, help="of pgd's figure, in the unit of eps (2.5 eps / steps)")
    how.add_argument("--restarts", type=int, default=2, help="of pgd: random starts; the worst counts (%(default)s)")
    how.add_argument("--curve", type=int, default=4, help="points of pgd's curve up to 2 eps (%(default)s); 0: none")
    how.add_argument("--checks", type=int, default=100, help="images for the flags' attacks (%(default)s); 0: none")
    how.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    other = parser.add_argument_group("in place of attacks")
    eval_shifts.flags(other)
    eval_corruptions.flags(other)
    eval_saved.flags(other)
    eval_other.flags(other)
    out = parser.add_argument_group("where and whither")
    out.add_argument("--device", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    out.add_argument("--devices", type=int, default=1, help="processes on a Ray cluster, one a device (%(default)s)")
    out.add_argument("--workers", type=int, default=0, help="processes a device that decode and corrupt (%(default)s)")
    out.add_argument("--address", help="of the Ray cluster (RAY_ADDRESS, else a local one)")
    out.add_argument("--json", metavar="FILE", help="the report (eval.json in the run's folder, or in runs/NAME)")
    out.add_argument("--html", metavar="FILE", help="the report as a page that needs no other file (beside the report)")
    out.add_argument("--pictures", metavar="FOLDER", help="the pictures eval-*.png (beside the report)")
    modes = ("auto", "offline", "online", "off")
    said = "all of it to Weights & Biases; auto: online where a key is found (%(default)s)"
    out.add_argument("--wandb", nargs="?", choices=modes, const="auto", default="off", help=said)
    found = parser.parse_args(words)
    if (found.checkpoint is None) == (found.model is None):
        parser.error("name a checkpoint, or a timm model by --model")
    if found.model is not None:
        needed = (
            ("weights",)
            if found.shift
            else ("weights", "data")
            if found.corruptions or found.evaluator
            else ("weights", "data", "eps")
        )
        missing = [f"--{name}" for name in needed if getattr(found, name) is None]
        if missing:
            parser.error(f"--model needs {' and '.join(missing)} too: there is no run to take them from")
    elif found.weights is not None:
        parser.error("--weights needs --model: a checkpoint has its own weights")
    eval_corruptions.check(parser, found)
    eval_saved.check(parser, found)
    threats, radii = len(found.threat or ()), len(found.eps or ())
    if threats and radii != threats and (threats > 1 or radii):
        parser.error(
            f"{threats} threat models and {radii} eps: give one for each, in order; --curve takes several of one"
        )
    if not found.threat and len(found.eps or ()) > 1:
        parser.error("several eps need as many threat models: --threat linf l2 --eps 8/255 0.5")
    return found


def kinds() -> tuple[str, ...]:
    """The attacks by name."""
    from robust_train.evaluate.robustness import Kind

    return get_args(Kind)


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report and the pictures."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances, put
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import evaluate
    from robust_train.read.parse import tree_of
    from robust_train.records.exhibits import draw, exhibits, write
    from robust_train.records.judging import telling
    from robust_train.records.mirror import mirror
    from robust_train.records.page import page
    from robust_train.records.pairs import keep
    from robust_train.records.tables import show
    from robust_train.settings.tracking import Tracking

    asked = arguments(words)
    began = time.monotonic()
    device = device_of(asked)
    if asked.shift:
        eval_shifts.judge(asked, subject_of(asked), device, words, deal, resumed)
        return
    if asked.corruptions:
        eval_corruptions.judge(asked, subject_of(asked), device, words, deal, of_subject, resumed)
        return
    if asked.evaluator:
        eval_other.judge(asked, subject_of(asked), device, words, deal, resumed)
        return
    subject, evaluation = wanted(asked)
    target = Path(asked.json) if asked.json else subject.home / "eval.json"
    html = Path(asked.html) if asked.html else target.with_suffix(".html")
    folder = Path(asked.pictures) if asked.pictures else target.parent
    writable(target.parent, "--json FILE")  # before the work, not after it
    writable(html.parent, "--html FILE")
    writable(folder, "--pictures FOLDER")
    networks, data = subject.networks(device), subject.images()
    ((_, network),) = networks.items()
    evaluation = eval_saved.evaluated(asked, evaluation, data)
    store = Store(subject.home / "eval", subject.fingerprints)
    dealt = deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(evaluation, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    before = resumed(store)
    report, (verdicts, plan, _) = evaluation.report(found), evaluation.read(found)
    names = data.names()
    show(subject.title, report, names)
    noise = subject.noise_of(network)
    notes = said(subject, evaluation, plan) + of_subject(subject, noise, data) + before
    for note in notes:
        print(f"note: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = exhibits(network, verdicts, plan)
    eval_saved.written(asked, subject, evaluation, found)
    pictures = write(draw(report, shown, names, subject.title), folder)
    tree = {
        "command": shlex.join(["python", "-m", "tools.eval", *words]),
        "model": subject.title,
        "weights": subject.source,
        "noise": noise,
        "identity": subject.identity(data),
        "images": report.images,
        "evaluation": tree_of(evaluation),
        "seed": asked.seed,
        **report.tree(names),
        "notes": notes,
        "pictures": [str(path) for path in pictures],
        "verdicts": target.with_suffix(".verdicts.safetensors").name,
        **circumstances(device, began),
    }
    replaced = put(tree, target)
    keep(verdicts, plan, target.parent / str(tree["verdicts"]))
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(page(tree, shown), encoding="utf-8")
    for path in pictures:
        print(f"picture: {path}")
    print(f"report: {target}\npage: {html}", *replaced, sep="\n")
    if asked.wandb != "off":
        tracking = Tracking() if subject.run is None else subject.run.records
        mirror(tree, pictures, html, store.home(), replace(tracking, wandb=asked.wandb))


def device_of(asked: argparse.Namespace) -> str:
    """Where it runs. ConfigError for a GPU that is not there."""
    import torch

    from robust_train.arithmetic import full_float32

    full_float32()
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: PyTorch finds no GPU here. Say --device cpu.")
    return device


def subject_of(asked: argparse.Namespace) -> Subject:
    """What is judged, and on which images."""
    from robust_train.subject import Subject

    same = ("checkpoint", "model", "weights", "classes", "size", "crop", "data", "listed", "noise")
    return Subject(**{name: getattr(asked, name) for name in same}, averaged=not asked.raw)


def wanted(asked: argparse.Namespace) -> tuple[Subject, Robustness]:
    """What is judged, and how: in the threat models that are asked for, or else the run's."""
    from robust_train.evaluate.robustness import Robustness
    from robust_train.read.parse import parse, tree_of

    subject = subject_of(asked)
    threat = subject.threat
    own: dict[str, Any] = {} if threat is None else tree_of(threat)
    uses = asked.threat or [own.get("use", "linf")]
    threats: list[dict[str, Any]] = []
    for use, eps in zip(uses, asked.eps or [None] * len(uses), strict=True):
        if eps is None and own.get("use") != use:
            raise ConfigError(
                f"{subject.title}: the run was not attacked in the threat model {use}, so it has no eps for it. Give "
                "one, such as --eps 8/255."
            )
        base = own if own.get("use") == use else {"use": use}
        threats.append(base if eps is None else {**base, "eps": eps})
    names = ("attack", "steps", "step_size", "restarts", "curve", "images", "chunk", "checks")
    tree = {"threats": threats, **{name: getattr(asked, name) for name in names}}
    return subject, parse(Robustness, tree, "evaluation", "the command line")


def deal(asked: argparse.Namespace, subject: Any, device: str) -> Deal | None:
    """Who does the work, where it is not this process alone."""
    if asked.devices < 1:
        raise ConfigError(f"--devices {asked.devices}: at least one process does the work")
    if asked.workers < 0:
        raise ConfigError(f"--workers {asked.workers} must not be negative; 0: the evaluating process decodes itself")
    if asked.devices == 1 and asked.address is None:
        return None
    try:
        from launch.address import address_of
        from launch.deal import dealt
    except ImportError as error:
        raise ConfigError(f"--devices {asked.devices} needs Ray ({error}): pip install -e '.[cluster]'") from error
    address = address_of(asked.address, "--address")
    return dealt(subject, asked.devices, device.startswith("cuda"), address, asked.workers)


def resumed(store: Store) -> list[str]:
    """What there is to say of what an earlier start had made."""
    notes = []
    if store.healed:
        names = ", ".join(path.name for path in store.healed[:4]) + ", ..." * (len(store.healed) > 4)
        notes.append(f"{len(store.healed)} kept files were damaged or cut off ({names}): what was lost was made again")
    if store.resumed:
        print(f"going on: {store.resumed} pieces were found in {store.folder}", file=sys.stderr)
        notes.append(f"{store.resumed} pieces were made by an earlier start: the seconds are of this one")
    if store.moved:
        notes.append(f"{store.moved} of these were made in chunks of another size: rounding may differ")
    return notes


def said(subject: Subject, evaluation: Robustness, plan: Plan) -> list[str]:
    """What a reader must know beside the figures."""
    notes = []
    if not evaluation.attack.startswith("autoattack"):
        notes.append("the figures are upper bounds of robust accuracy: --attack autoattack may find more")
    if evaluation.attack == "cr":
        notes.append("cr is an estimate of what AutoAttack finds, not AutoAttack")
    if evaluation.attack == "autoattack" and plan.draws > 1:
        notes.append("the network has randomness of its own: it was attacked by the version rand, not standard")
    if plan.draws > 1:
        notes.append(f"verdicts are means over {plan.draws} passes of a network that answers at random")
    return notes


def of_subject(subject: Subject, noise: str | None, data: Dataset) -> list[str]:
    """What a reader must know of the network, whatever it is judged under. noise: how its own is treated."""
    told = {
        "drawn": "the network's own noise was drawn, as in training; --noise fixed judges it without: report both",
        "fixed": "the network's own noise was one draw, the same for every image: it answers the same each time, "
        "which it was not trained for; report --noise drawn too",
        "off": "the network's own noise was off, which it was not trained for: report --noise drawn too",
    }
    notes = [] if noise is None else [told[noise]]
    if subject.picked:
        who = "a member's checkpoint" if len(subject.checkpoints) > 1 else "this checkpoint"
        notes.append(f"{who} was picked as the run's best on these images, which flatters it a little")
    if subject.fitted_on(data):
        notes.append("the members' weights were fitted on images of these shards, which flatters them if on the same")
    return notes


if __name__ == "__main__":
    main(sys.argv[1:])
