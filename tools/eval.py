"""How well a checkpoint holds: clean and PGD accuracy, accuracy against eps, a table a class, a picture."""

from __future__ import annotations

import argparse
import json
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard

if TYPE_CHECKING:
    from robust_train.evaluate.report import Figure, Judged
    from robust_train.nouns import Attack, Dataset, Threat

EPILOG = """examples
  python -m tools.eval runs/demo                                   the run's own data, threat model and eps
  python -m tools.eval runs/demo --eps 0.1 --steps 100 --restarts 5
  python -m tools.eval --model resnet50 --weights resnet50.safetensors --data 'val-{0000..0049}.tar' --eps 4/255
A PGD figure is an upper bound of robust accuracy and is named by its attack. eps is in the threat model's unit: pixels
in [0, 1] for linf (8/255 is eight grey levels), Euclidean length for l2, sum of absolute changes for l1.
"""


def number(text: str) -> float:
    """0.1 or 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write 0.03 or 8/255") from None


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tools.eval", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoint", nargs="?", help="a run's folder (its best checkpoint, else its newest) or a checkpoint"
    )
    parser.add_argument("--model", help="instead: a timm model by name")
    parser.add_argument("--weights", help="its weights: a local safetensors or pth file")
    parser.add_argument("--data", help="validation shards (path, glob, brace list, URL); default: the run's own")
    parser.add_argument("--classes", type=int, default=1000, help="classes of --model (1000)")
    parser.add_argument("--size", type=int, default=224, help="image side of --model (224)")
    parser.add_argument("--images", type=int, help="the first so many images; default: all")
    parser.add_argument("--threat", choices=("linf", "l2", "l1"), help="threat model; default: the run's, else linf")
    parser.add_argument("--eps", type=number, help="radius, such as 8/255; default: the run's")
    parser.add_argument("--steps", type=int, default=50, help="PGD steps (50)")
    parser.add_argument("--step-size", type=number, help="default: 2.5 eps / steps")
    parser.add_argument("--restarts", type=int, default=2, help="independent random starts; the worst counts (2)")
    parser.add_argument(
        "--curve", type=int, default=4, help="points of the curve up to 2 eps, one start each (4); 0: none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the attacks' random starts (0)")
    parser.add_argument("--chunk", type=int, default=256, help="consecutive images that are attacked together (256)")
    parser.add_argument("--raw", action="store_true", help="the weights themselves where the run kept an average too")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: the GPU where there is one")
    parser.add_argument("--json", help="write the report here; default: eval.json beside the checkpoint's run")
    parser.add_argument("--picture", help="write the pictures here; default: eval-*.png beside the report")
    found = parser.parse_args(words)
    if (found.checkpoint is None) == (found.model is None):
        parser.error("name a checkpoint, or a timm model by --model")
    if found.model is not None and (found.data is None or found.eps is None):
        parser.error("--model needs --data and --eps: there is no run to take them from")
    return found


@main_guard()
def main(words: list[str]) -> None:
    asked = arguments(words)
    report = evaluate(asked)
    target = Path(asked.json) if asked.json else default_folder(asked) / "eval.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"report: {target}")


def evaluate(asked: argparse.Namespace) -> dict[str, Any]:
    """Judge, show, and return the report as a tree."""
    import torch

    from robust_train.evaluate.report import Figure, circumstances, judge, spread
    from robust_train.keyed import Key
    from robust_train.nouns import Place
    from robust_train.read.parse import tree_of

    began = time.monotonic()
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: PyTorch finds no GPU here. Say --device cpu.")
    network, data, threat, name = subject(asked, device)
    data.prepare()

    def batches():
        return data.validation_batches(Place(), asked.chunk, asked.images)

    def run(attack: Attack | None, label: str) -> Judged:
        with progress(label, asked.images or validation_size(data)) as seen:
            return judge(network, batches(), attack, Key(asked.seed).of(label), device, seen)

    eps = threat.eps
    attack = pgd(threat, asked.steps, asked.step_size, asked.restarts)
    judged = run(attack, attack.label)
    count = len(judged.sample)
    if not count:
        raise ConfigError("there are no images to judge: name shards by --data")
    figures = [
        Figure("clean", int(judged.clean.sum()), count),
        Figure(attack.label, int(judged.robust.sum()), count, eps, tree_of(attack)),
    ]
    curve = [Figure("clean", int(judged.clean.sum()), count, 0.0)]
    for radius in spread(eps, asked.curve) if asked.curve else ():
        one = pgd(of_radius(threat, radius), asked.steps, None, 1)
        curve.append(
            Figure(one.label, int(run(one, f"{one.label} eps {radius:.4g}").robust.sum()), count, radius, tree_of(one))
        )
    names = data.names()
    per_class = judged.per_class(network.classes)
    show(name, threat, figures, curve, per_class, names, asked)
    pictures = draw(asked, network, data, attack, curve, name, device)
    return {
        "model": name,
        "data": {"shards": data.checksums(), "images": count, "chunk": asked.chunk},
        "threat": tree_of(threat),
        "figures": [figure.tree() for figure in figures],
        "curve": [figure.tree() for figure in curve],
        "classes": [
            {"class": names[k], "images": n, "clean": c, figures[1].name: r} for k, (n, c, r) in enumerate(per_class)
        ],
        "seed": asked.seed,
        "pictures": [str(path) for path in pictures],
        "note": f"{attack.label} is an upper bound of robust accuracy; a stronger attack may find more",
        **circumstances(device, began),
    }


def subject(asked: argparse.Namespace, device: str) -> tuple[Any, Dataset, Threat, str]:
    """The network, its images, the threat model, and what to call it."""
    from dataclasses import replace

    from robust_train.data.shards import Shards
    from robust_train.loading import load, of_timm, run_of
    from robust_train.read.parse import parse
    from robust_train.read.registry import threats

    if asked.model is not None:
        network = of_timm(asked.model, device, asked.weights, asked.classes, size=asked.size)
        data = Shards(train=asked.data, validation=asked.data, classes=asked.classes, size=asked.size)
        return network, data, threats[asked.threat or "linf"](eps=asked.eps), asked.model
    run = run_of(asked.checkpoint)
    network = load(asked.checkpoint, device, averaged=not asked.raw)
    data = run.data if asked.data is None else replace(run.data, validation=asked.data)
    own = next(
        (a.threat for a in (run.validate.final, run.validate.attack, getattr(run.objective, "attack", None)) if a), None
    )
    if asked.threat is not None and (own is None or own.use != asked.threat):
        if asked.eps is None:
            raise ConfigError(
                f"--threat {asked.threat} needs --eps: the run was trained for {own.use if own else 'none'}"
            )
        own = threats[asked.threat](eps=asked.eps)
    elif own is None or asked.eps is not None:
        if asked.eps is None:
            raise ConfigError("the run names no threat model: give --eps, such as --eps 8/255")
        own = of_radius(own, asked.eps) if own else parse(threats.root, {"use": "linf", "eps": asked.eps})
    return network, data, own, str(asked.checkpoint)


def pgd(threat: Threat, steps: int, size: float | None, restarts: int) -> Attack:
    """PGD with the usual step, and the worst of its restarts."""
    from robust_train.attacks.combine import Restarts
    from robust_train.attacks.pgd import PGD

    one = PGD(threat, steps, size if size is not None else 2.5 * threat.eps / max(1, steps))
    return one if restarts == 1 else Restarts(one, restarts)


def of_radius(threat: Threat, eps: float) -> Threat:
    """The same threat model with another radius."""
    from dataclasses import replace

    return replace(threat, eps=eps)


def validation_size(data: Dataset) -> int | None:
    """How many validation images there are, where the data set can say."""
    return data.validation_size() if hasattr(data, "validation_size") else None


def progress(label: str, total: int | None):
    """A bar with accuracy so far on a terminal; silent elsewhere."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown():
        console = Console(file=sys.stderr)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("clean {task.fields[clean]:.1%} robust {task.fields[robust]:.1%}"),
            console=console,
            disable=not console.is_terminal,
        )
        with bar:
            task = bar.add_task(label, total=total, clean=0.0, robust=0.0)
            yield lambda images, clean, robust: bar.update(
                task, completed=images, clean=clean / images, robust=robust / images
            )

    return shown()


def show(name, threat, figures: list[Figure], curve: list[Figure], per_class, names, asked) -> None:
    """The tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    table = Table(title=f"{name}: {threat.use} eps={threat.eps:.4g}, {figures[0].images} images, seed {asked.seed}")
    for column in ("figure", "accuracy", "95 % interval", "right / images"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in figures:
        low, high = figure.interval
        table.add_row(
            figure.name, f"{figure.accuracy:.2%}", f"{low:.1%} to {high:.1%}", f"{figure.right} / {figure.images}"
        )
    console.print(table)
    if len(curve) > 1:
        against = Table(title="accuracy against eps, one start each")
        against.add_column("eps", justify="right")
        against.add_column(curve[-1].name, justify="right")
        for figure in curve:
            against.add_row(f"{figure.eps:.4g}", f"{figure.accuracy:.2%}")
        console.print(against)
    classes = Table(title="per class, the twenty weakest" if len(per_class) > 20 else "per class")
    for column in ("class", "images", "clean", figures[1].name):
        classes.add_column(column, justify="left" if column == "class" else "right")
    rows = sorted(((r / n, names[k], n, c / n) for k, (n, c, r) in enumerate(per_class) if n))
    for robust, label, count, clean in rows[:20]:
        classes.add_row(label, str(count), f"{clean:.1%}", f"{robust:.1%}")
    console.print(classes)


def draw(asked, network, data, attack, curve, name, device) -> list[Path]:
    """The pictures: clean, adversarial and difference images; accuracy against eps."""
    import torch

    from robust_train.evaluate.accuracy import judged
    from robust_train.keyed import Key
    from robust_train.nouns import Place
    from robust_train.records import pictures

    folder = Path(asked.picture) if asked.picture else default_folder(asked)
    folder.mkdir(parents=True, exist_ok=True)
    batch = next(data.validation_batches(Place(), 8, 8)).to(device)
    with judged(network), torch.no_grad():
        adversarial = attack(network, batch.images, batch.targets, Key(asked.seed).of("picture").rows(batch.sample))
        logits = network(batch.images), network(adversarial)
    written = [folder / "eval-attack.png"]
    written[0].write_bytes(
        pictures.attack_picture(
            batch.images, adversarial, batch.targets, *logits, data.names(), f"{name}, {attack.label}"
        )
    )
    if len(curve) > 1:
        written.append(folder / "eval-curve.png")
        accuracies = {curve[-1].name: [figure.accuracy for figure in curve]}
        written[1].write_bytes(
            pictures.curve([float(figure.eps or 0) for figure in curve], accuracies, curve[0].images, name)
        )
    for path in written:
        print(f"picture: {path}")
    return written


def default_folder(asked: argparse.Namespace) -> Path:
    """Beside the run that a checkpoint belongs to; for a timm model the working folder's runs/NAME."""
    if asked.checkpoint is None:
        return Path("runs") / asked.model
    path = Path(asked.checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else path


if __name__ == "__main__":
    main(sys.argv[1:])
