"""Accuracy on clean images and under attack, in one threat model or several; curves, classes, flags, a page."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard
from robust_train.tools import shared
from robust_train.tools.shared import number

if TYPE_CHECKING:
    from robust_train.evaluate.columns import Columns
    from robust_train.evaluate.robustness import Robustness
    from robust_train.evaluate.verdicts import Plan
    from robust_train.nouns import Threat
    from robust_train.subject import Subject

EPILOG = f"""examples
  python -m tools.eval runs/demo
      the run's best checkpoint (else its newest), on its own validation images, threat model and eps, by PGD-50
  python -m tools.eval attack runs/demo --attack autoattack
      the field's measure: APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on the images still standing
  python -m tools.eval attack runs/demo --attack cr
      a quick estimate of AutoAttack (linf only), named as such
  python -m tools.eval attack runs/cifar10 --attack autoattack --threat linf l2 l1 --eps 8/255 0.5 12 --images 1000
      three threat models and their union
  python -m tools.eval attack runs/demo --threat l2 --eps 1.0 --steps 100 --restarts 5 --json l2.json
  python -m tools.eval attack runs/demo --attack mi-fgsm square '{{use: apgd, steps: 50, towards: 3}}'
      any attacks by name or by their fields, each by itself on the images that are right when clean; the worst counts
  python -m tools.eval attack runs/demo --uses my_lab.attacks --attack half my_lab.attacks:mine
      attacks of your own: one that my_lab.attacks registers, and a function (module, images, labels) -> points
  python -m tools.eval attack --model resnet50 --weights r50.safetensors --data 'val-{{0000..0049}}.tar' --eps 4/255
  python -m tools.eval attack --model my_lab.nets:make --classes 10 --size 32 --data 'val-*.tar' --eps 8/255
      an nn.Module of your own: my_lab.nets.make() gives it, from images in [0, 1] to logits
  python -m tools.eval attack runs/demo --attack autoattack --devices 2 --wandb
  python -m tools.eval attack runs/demo --attack autoattack --save-adversarial set.pth
      the adversarial images too, in AutoAttack's form; `tools.eval saved` judges them again
  python -m tools.eval attack runs/v1 --noise fixed --json fixed.json
      a network with noise of its own, judged without the randomness

what the figures say
  A figure is an upper bound of robust accuracy and is named by its attack: a stronger one may find more. An image
  counts as robust that is right when clean and after every attack, over all images, those wrong from the start too.
  Intervals are Wilson's at 95 %, for the images as a draw from more of their kind. eps is in the threat model's unit:
  pixels in [0, 1] for linf (8/255 is eight grey levels), Euclidean length for l2, sum of changes for l1, pixels for l0.
  Flags say what could have fooled the evaluation, whether it was seen, and what to do about it.

{shared.GOES_ON}
from Python (docs/python.md)
  report = robust_train.evaluate(module, images, labels, threats={{"linf": 8 / 255}}, attack="autoattack")
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval attack", __doc__, EPILOG)
    shared.of_network(parser.add_argument_group("what is judged"))
    shared.of_images(parser.add_argument_group("on which images"))
    how = parser.add_argument_group("attacked how")
    how.add_argument(
        "--attack",
        nargs="+",
        default=["pgd"],
        metavar="NAME",
        help=f"{', '.join(_kinds())}; or any others: `--list attacks` by name or {{use: NAME, ...}}, and "
        "MODULE:FUNCTION of your own (pgd)",
    )
    of_threats(how)
    how.add_argument("--steps", type=int, help="of pgd (50) and of attacks by name (their usual)")
    how.add_argument("--step-size", type=number, help="of pgd's figure, in the unit of eps (2.5 eps / steps)")
    how.add_argument("--restarts", type=int, help="of pgd: random starts; the worst counts (2)")
    how.add_argument("--curve", type=int, default=4, help="points of pgd's curve up to 2 eps (%(default)s); 0: none")
    how.add_argument("--checks", type=int, default=100, help="images for the flags' attacks (%(default)s); 0: none")
    told = "share of flattered images that the flags have to see, such as 1/400: on 3 / SHARE images or more"
    how.add_argument("--sees", type=number, metavar="SHARE", help=told)
    how.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    out = parser.add_argument_group("where and whither")
    shared.of_devices(out)
    of_page(out)
    out.add_argument(
        "--save-adversarial",
        metavar="FILE",
        help="write the adversarial images in AutoAttack's form, and what is known of them to FILE.json",
    )
    found = parser.parse_args(words)
    shared.check(parser, found, "data", "eps")
    check_threats(parser, found)
    if found.save_adversarial and len(found.threat or ()) > 1:
        parser.error(f"--save-adversarial: a set is of one threat model, and {len(found.threat)} are asked for")
    return found


def of_threats(how: argparse._ArgumentGroup, several: bool = True) -> None:
    """The flags that say threat models."""
    some: Any = {"nargs": "+"} if several else {"nargs": 1}
    told = "threat models: linf, l2, l1, l0, or {use: NAME, ...} (the run's, else linf)"
    how.add_argument("--threat", **some, metavar="NAME", help=told)
    how.add_argument("--eps", **some, type=number, help="their radii, such as 8/255 (the run's)")


def of_page(out: argparse._ArgumentGroup) -> None:
    """The flags that say where report, page and pictures go."""
    shared.of_report(out, "eval.json")
    out.add_argument("--html", metavar="FILE", help="the report as a page that needs no other file (beside the report)")
    out.add_argument("--pictures", metavar="FOLDER", help="the pictures eval-*.png (beside the report)")
    modes = ("auto", "offline", "online", "off")
    said = "all of it to Weights & Biases; auto: online where a key is found (%(default)s)"
    out.add_argument("--wandb", nargs="?", choices=modes, const="auto", default="off", help=said)


def check_threats(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Refuse threat models and radii that do not go together."""
    threats, radii = len(found.threat or ()), len(found.eps or ())
    if threats and radii != threats and (threats > 1 or radii):
        parser.error(
            f"{threats} threat models and {radii} eps: give one for each, in order; --curve takes several of one"
        )
    if not found.threat and len(found.eps or ()) > 1:
        parser.error("several eps need as many threat models: --threat linf l2 --eps 8/255 0.5")


def _kinds() -> tuple[str, ...]:
    from robust_train.door.named import KINDS

    return KINDS


@main_guard()
def main(words: list[str]) -> None:
    """Attack, show, and write the report and the pictures."""
    from robust_train.check import writable

    asked = arguments(words)
    if asked.save_adversarial:
        writable(Path(asked.save_adversarial).parent, "--save-adversarial FILE")
    subject, evaluation = wanted(asked)
    if asked.save_adversarial:
        evaluation = replace(evaluation, points=True)
    judge(asked, subject, lambda data: evaluation, ["attack", *words])


def judge(asked: argparse.Namespace, subject: Subject, evaluation_on: Any, words: list[str]) -> None:
    """Judge, show, and write the report and the pictures. evaluation_on: of the images, the evaluation."""
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

    began, device = time.monotonic(), shared.device_of(asked)
    target = Path(asked.json) if asked.json else subject.home / "eval.json"
    html = Path(asked.html) if asked.html else target.with_suffix(".html")
    folder = Path(asked.pictures) if asked.pictures else target.parent
    writable(target.parent, "--json FILE")  # before the work, not after it
    writable(html.parent, "--html FILE")
    writable(folder, "--pictures FOLDER")
    networks, data = subject.networks(device), subject.images()
    ((_, network),) = networks.items()
    evaluation = evaluation_on(data)
    store, dealt = Store(subject.home / "eval", subject.fingerprints), shared.deal(asked, subject, device)
    with telling() as tell:
        found = evaluate(evaluation, networks, data, asked.seed, device, store, dealt, tell, asked.workers)
    before = shared.resumed(store)
    report, (verdicts, plan, _) = evaluation.report(found), evaluation.read(found)
    names = data.names()
    show(subject.title, report, names)
    noise = subject.noise_of(network)
    notes = said(subject, evaluation, plan) + shared.of_subject(subject, noise, data) + before
    for note in notes:
        print(f"note: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = exhibits(network, verdicts, plan)
    if getattr(asked, "save_adversarial", None):
        save(asked, subject, evaluation, found)
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


def wanted(asked: argparse.Namespace) -> tuple[Subject, Robustness]:
    """What is judged, and how: in the threat models that are asked for, or else the run's."""
    from robust_train.door.identity import of_function
    from robust_train.door.named import evaluation_of

    subject = shared.subject_of(asked)
    threats = threats_of(asked, subject)
    options = {name: getattr(asked, name) for name in ("curve", "checks", "sees", "images", "chunk")}
    ways = asked.steps, asked.step_size, asked.restarts
    return subject, evaluation_of([told(one) for one in asked.attack], threats, *ways, of_function, **options)


def told(text: str) -> Any:
    """An attack as a command line says it: a name, {use: NAME, ...}, or MODULE:FUNCTION."""
    from importlib import import_module

    from robust_train.read import yaml
    from robust_train.read.uses import bring

    if "{" in text:
        return yaml.read(text)
    module, colon, name = text.partition(":")
    if not colon:
        return text
    bring([module], f"--attack {text}")
    try:
        return getattr(import_module(module), name)
    except AttributeError:
        raise ConfigError(f"--attack {text}: {module} has no {name}") from None


def threats_of(asked: argparse.Namespace, subject: Subject) -> tuple[Threat, ...]:
    """The threat models that are named, or else the run's. Raises ConfigError for one without a radius."""
    from robust_train.door import named
    from robust_train.read import yaml
    from robust_train.read.parse import tree_of

    threat = subject.threat
    own: dict[str, Any] = {} if threat is None else tree_of(threat)
    uses = asked.threat or [own.get("use", "linf")]
    threats: list[dict[str, Any]] = []
    for use, eps in zip(uses, asked.eps or [None] * len(uses), strict=True):
        tree: dict[str, Any] = yaml.read(use) if "{" in use else {"use": use}
        if eps is None and "eps" not in tree and own.get("use") != tree.get("use"):
            raise ConfigError(
                f"{subject.title}: the run was not attacked in the threat model {use}, so it has no eps for it. Give "
                "one, such as --eps 8/255."
            )
        base = {**own, **tree} if own.get("use") == tree.get("use") else tree
        threats.append(base if eps is None else {**base, "eps": eps})
    return named.threats_of(threats)


def save(asked: argparse.Namespace, subject: Subject, evaluation: Robustness, found: Columns) -> None:
    """Write the adversarial images that were asked for."""
    from robust_train.evaluate import adversarial_sets
    from robust_train.read.parse import tree_of

    (_, plan, _), ((tag, threat),) = evaluation.read(found), evaluation.tagged
    about = {
        "attacks": [tree_of(trial.attack) for trial in plan.of("attack", tag)],
        "seed": asked.seed,
        "model": subject.title,
        "weights": subject.source,
    }
    points = adversarial_sets.parts(evaluation, found, tag)
    adversarial_sets.save(asked.save_adversarial, points, *found.rows(), threat, about)
    print(f"adversarial images: {asked.save_adversarial}")


def said(subject: Subject, evaluation: Robustness, plan: Plan) -> list[str]:
    """What a reader must know beside the figures."""
    own: Sequence[Any] = evaluation.attacks
    notes = []
    if own or not evaluation.attack.startswith("autoattack"):
        notes.append("the figures are upper bounds of robust accuracy: --attack autoattack may find more")
    if evaluation.attack == "cr" or any(attack.use == "cr" for attack in own):
        notes.append("cr is an estimate of what AutoAttack finds, not AutoAttack")
    if not own and evaluation.attack == "autoattack" and plan.draws > 1:
        notes.append("the network has randomness of its own: it was attacked by the version rand, not standard")
    if plan.draws > 1:
        notes.append(f"verdicts are means over {plan.draws} passes of a network that answers at random")
    return notes
