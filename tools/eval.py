"""How well a network holds: clean and PGD accuracy, accuracy against eps, a table a class, pictures."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard

if TYPE_CHECKING:
    from robust_train.evaluate.pgd import PGDEvaluation
    from robust_train.evaluate.report import Report, Seen
    from robust_train.models.network import Network
    from robust_train.nouns import Dataset
    from robust_train.run import Run

EPILOG = """examples
  python -m tools.eval runs/demo
      the run's best checkpoint (else its newest), on its own validation images, threat model and eps
  python -m tools.eval runs/demo/checkpoints/00000440 --images 100 --steps 100 --restarts 5
  python -m tools.eval runs/demo --threat l2 --eps 1.0 --json l2.json
  python -m tools.eval --model resnet50 --weights resnet50.safetensors --data 'val-{0000..0049}.tar' --eps 4/255

what the figures say
  A PGD figure is an upper bound of robust accuracy and is named by its attack: a stronger attack may find more. An
  image counts as robust that is right when clean and after every restart, over all images, those wrong from the start
  too. Intervals are Wilson's at 95 %, for the images as a draw from more of their kind. eps is in the threat model's
  unit: pixels in [0, 1] for linf (8/255 is eight grey levels), Euclidean length for l2, sum of changes for l1.
  The curve has one start a point and 2.5 eps / steps a step; where accuracy does not fall as eps grows, or images have
  no gradient, the report says so: the network may hide its gradient.

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


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        "python -m tools.eval", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is judged")
    what.add_argument(
        "checkpoint", nargs="?", help="a run's folder (its best checkpoint, else its newest) or a checkpoint"
    )
    what.add_argument("--raw", action="store_true", help="the weights themselves where the run kept an average too")
    what.add_argument("--model", metavar="NAME", help="instead of a checkpoint: a timm model by name")
    what.add_argument("--weights", metavar="FILE", help="its weights: a local .safetensors, .pth or .pt file")
    what.add_argument("--classes", type=int, default=1000, help="classes of --model (%(default)s)")
    what.add_argument("--size", type=int, default=224, help="image side of --model (%(default)s)")
    what.add_argument("--crop", type=number, default=0.875, help="middle share of images for --model (%(default)s)")
    where = parser.add_argument_group("on which images")
    where.add_argument("--data", metavar="URL", help="shards: a path, folder, glob, brace list or URL (the run's own)")
    where.add_argument("--images", type=int, help="the first so many (all)")
    where.add_argument("--chunk", type=int, default=256, help="consecutive images attacked together (%(default)s)")
    how = parser.add_argument_group("attacked how")
    how.add_argument("--threat", choices=("linf", "l2", "l1"), help="threat model (the run's, else linf)")
    how.add_argument("--eps", type=number, help="radius, such as 8/255 (the run's)")
    how.add_argument("--steps", type=int, default=50, help="PGD steps (%(default)s)")
    how.add_argument("--step-size", type=number, help="of the figure, in the unit of eps (2.5 eps / steps)")
    how.add_argument("--restarts", type=int, default=2, help="random starts; the worst counts (%(default)s)")
    how.add_argument("--curve", type=int, default=4, help="points of the curve up to 2 eps (%(default)s); 0: none")
    how.add_argument("--seed", type=int, default=0, help="of the random starts (%(default)s)")
    out = parser.add_argument_group("where and whither")
    out.add_argument("--device", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    out.add_argument("--json", metavar="FILE", help="the report (eval.json in the run's folder, or in runs/NAME)")
    out.add_argument("--pictures", metavar="FOLDER", help="the pictures eval-*.png (beside the report)")
    found = parser.parse_args(words)
    if (found.checkpoint is None) == (found.model is None):
        parser.error("name a checkpoint, or a timm model by --model")
    if found.model is not None:
        missing = [f"--{name}" for name in ("weights", "data", "eps") if getattr(found, name) is None]
        if missing:
            parser.error(f"--model needs {' and '.join(missing)} too: there is no run to take them from")
    elif found.weights is not None:
        parser.error("--weights needs --model: a checkpoint has its own weights")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report and the pictures."""
    from robust_train.check import writable
    from robust_train.evaluate.report import circumstances
    from robust_train.keyed import Key
    from robust_train.read.parse import tree_of
    from robust_train.records.tables import show

    asked = arguments(words)
    began = time.monotonic()
    device = device_of(asked)
    network, data, evaluation = subject(asked, device)
    target = Path(asked.json) if asked.json else home(asked) / "eval.json"
    folder = Path(asked.pictures) if asked.pictures else target.parent
    writable(target.parent, "--json FILE")  # before the work, not after it
    writable(folder, "--pictures FOLDER")
    data.prepare()
    names = data.names()
    total = evaluation.images or data.validation_size()
    with bars(total) as watch:
        report = evaluation(network, data, Key(asked.seed), device, watch)
    title = asked.model or source(asked)
    show(title, evaluation.threat.use, evaluation.restarts, report, names)
    notes = [f"{evaluation.attack.label} is an upper bound of robust accuracy: a stronger attack may find more"]
    if picked(asked):
        notes.append("this checkpoint was picked as the run's best on these images, which flatters it a little")
    for note in notes:
        print(f"note: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(asked.seed, network, data, evaluation, report, title, folder, device)
    tree = {
        "model": title,
        "weights": source(asked),
        "data": shards(data) | {"images": report.images},
        "evaluation": tree_of(evaluation),
        "seed": asked.seed,
        **report.tree(names),
        "notes": notes,
        "pictures": [str(path) for path in pictures],
        **circumstances(device, began),
    }
    target.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"report: {target}")


def device_of(asked: argparse.Namespace) -> str:
    """Where it runs. ConfigError for a GPU that is not there."""
    import torch

    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(f"--device {device}: PyTorch finds no GPU here. Say --device cpu.")
        torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions, with 10 bits of mantissa
    return device


def subject(asked: argparse.Namespace, device: str) -> tuple[Network, Dataset, PGDEvaluation]:
    """The network, its images, and the evaluation with the threat model that is asked for, or else the run's."""
    from robust_train.data.shards import Shards
    from robust_train.evaluate.pgd import PGDEvaluation
    from robust_train.loading import load, of_timm, run_of, validation_of
    from robust_train.read.parse import parse, tree_of

    run = None if asked.model else run_of(asked.checkpoint)
    threat: dict[str, Any] = {"use": asked.threat or "linf"}
    own = None if run is None else tree_of(threat_of(run))
    if own and asked.threat in (None, own["use"]):
        threat = own
    elif run is not None and asked.eps is None:
        raise ConfigError(
            f"{asked.checkpoint}: the run was not attacked in the threat model {threat['use']}, so it has no eps for "
            "it. Give one, such as --eps 8/255."
        )
    if asked.eps is not None:
        threat |= {"eps": asked.eps}
    said = ("steps", "step_size", "restarts", "curve", "images", "chunk")
    tree = {name: getattr(asked, name) for name in said}
    evaluation = parse(PGDEvaluation, {"threat": threat, **tree}, "evaluation", "the command line")
    data: Dataset
    if run is None:
        url, size = asked.data, asked.size
        data = Shards(train=url, validation=url, classes=asked.classes, size=size, crop=asked.crop)
        return of_timm(asked.model, device, asked.weights, asked.classes, size=size), data, evaluation
    return load(asked.checkpoint, device, not asked.raw), validation_of(run.data, asked.data), evaluation


def threat_of(run: Run) -> Any:
    """The threat model that a run was judged or trained in, as it was in the last update; None where there is none."""
    from robust_train.nouns import at

    attacks = (run.validate.final, run.validate.attack, getattr(run.objective, "attack", None))
    return next((at(attack.threat, run.updates - 1, run.updates) for attack in attacks if attack is not None), None)


def source(asked: argparse.Namespace) -> str:
    """The file or folder that the weights came from."""
    from robust_train import checkpoint

    return str(asked.weights or checkpoint.find(asked.checkpoint))


def picked(asked: argparse.Namespace) -> bool:
    """Whether the weights are those that did best in the run's validation, on the very images they are judged on."""
    from robust_train import checkpoint

    if asked.checkpoint is None or asked.data is not None:
        return False
    folder = checkpoint.find(asked.checkpoint)
    return checkpoint.best(folder.parent.parent) == folder


def shards(data: Any) -> dict[str, Any]:
    """Which files the images came from."""
    from robust_train.data.manifest import shard_name

    return {"sha256": {shard_name(url): checksum for url, checksum in data.checksums().items()}}


@contextmanager
def bars(total: int) -> Iterator[Callable[[str], Seen]]:
    """A bar for each attack, with the accuracies so far, on a terminal; silent elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    so_far = TextColumn("clean {task.fields[clean]:.1%}, robust {task.fields[robust]:.1%}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), so_far)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def begin(name: str) -> Seen:
            task = progress.add_task(name, total=total, clean=0.0, robust=0.0)

            def seen(images: int, clean: int, robust: int) -> None:
                progress.update(task, completed=images, clean=clean / images, robust=robust / images)

            return seen

        yield begin


def draw(
    seed: int,
    network: Network,
    data: Any,
    evaluation: PGDEvaluation,
    report: Report,
    title: str,
    folder: Path,
    device: str,
) -> list[Path]:
    """The pictures: clean, adversarial and difference images; accuracy against eps."""
    import torch

    from robust_train.evaluate.accuracy import judged
    from robust_train.keyed import Key
    from robust_train.nouns import Place
    from robust_train.records import pictures

    attack, batch = evaluation.attack, next(data.validation_batches(Place(), 8, 8)).to(device)
    with judged(network), torch.no_grad():
        # the key of the figure, so that the images shown are those that were counted
        key = Key(seed).of("figure").rows(batch.sample)
        adversarial = attack(network, batch.images, batch.targets, key)
        logits = network(batch.images), network(adversarial)
    heading = f"{title}: {attack.label}, {evaluation.threat.use} eps {evaluation.eps:.4g}"
    shown = {
        "eval-attack.png": pictures.attack_picture(
            batch.images, adversarial, batch.targets, *logits, data.names(), heading
        )
    }
    if report.curve:
        line = {report.curve[-1].name: [one.accuracy for one in report.curve]}
        unit = f"eps ({evaluation.threat.use})"
        shown["eval-curve.png"] = pictures.curve(
            [one.eps or 0.0 for one in report.curve], line, report.images, title, unit
        )
    for name, png in shown.items():
        (folder / name).write_bytes(png)
        print(f"picture: {folder / name}")
    return [folder / name for name in shown]


def home(asked: argparse.Namespace) -> Path:
    """The folder of the run that a checkpoint belongs to; for a timm model runs/NAME below the working folder."""
    if asked.checkpoint is None:
        return Path("runs") / asked.model
    path = Path(asked.checkpoint)
    path = path.parent if path.is_file() else path
    return path.parent.parent if path.parent.name == "checkpoints" else path


if __name__ == "__main__":
    main(sys.argv[1:])
