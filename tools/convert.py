"""A checkpoint in a form that others read, and checked: timm's files, a RobustBench entry, ONNX, torch.export."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import CheckpointError, ConfigError, RunError, main_guard
from robust_train.read.paths import Parser
from robust_train.tools.shared import number, of_network

if TYPE_CHECKING:
    from torch import Tensor

    from robust_train.models.blueprint import Blueprint
    from robust_train.models.ensemble import Ensemble
    from robust_train.models.network import Network
    from robust_train.models.noise import Settlement
    from robust_train.nouns import Shape
    from robust_train.subject import Subject
    from robust_train.tools.robustbench_entry import Entry

EPILOG = """examples
  python -m tools.convert runs/demo --to onnx --out demo.onnx
  python -m tools.convert runs/demo --to export --out demo.pt2
  python -m tools.convert runs/demo/checkpoints/00000440 --to timm --out demo-timm
  python -m tools.convert runs/cifar10 --to robustbench --dataset cifar10 --report runs/cifar10/eval.json --out entry
  python -m tools.convert --model resnet50 --weights resnet50.safetensors --to export --out resnet50.pt2
  python -m tools.convert ensemble.yaml --to onnx --out ensemble.onnx
  python -m tools.convert runs/v1 --noise fixed --to export --out v1.pt2

the forms
  timm         folder: model.safetensors and config.json. timm.create_model(NAME, checkpoint_path=FILE) reads the
               weights, timm.create_model("local-dir:FOLDER", pretrained=True) the folder. The model takes normalised
               pixels; mean and std stand in config.json. Where timm cannot build the model, config.json says how
               robust_train does.
  robustbench  folder: models/, model_info/ and entry.py, whose register() makes it known to RobustBench's load_model.
               Pixels in [0, 1] to logits. What neither run nor --report nor --say says is null.
  onnx         one file: `images` [B, C, H, W] in [0, 1] to `logits` [B, classes], any B. Needs the extra `export`.
  export       one file: torch.export.load(FILE).module(), the same; gradients pass through it, so it can be attacked.

  An ensemble is written to onnx and export; its members can be converted one by one to the others. No form draws noise
  as a V1 front end does: --noise off leaves it out, --noise fixed bakes one draw in, the same for every image.
  What was written is loaded again by its reader and compared with the network, one image alone and the others together:
  logits may differ by 1e-4 of the largest, and at least of 1. If they differ by more, nothing is left at --out.
"""

FORMS = ("timm", "robustbench", "onnx", "export")
SUFFIX = {"onnx": ".onnx", "export": ".pt2"}  # of the forms that are one file; the others are folders
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order differ by some 1e-6


@dataclass(frozen=True)
class Trained:
    """What is converted: a network, how it is built, and what it sees."""

    network: Network | Ensemble  # in eval mode and float32, on the CPU
    blueprint: Blueprint  # of an ensemble its first member's
    shape: Shape  # of an image: channels, side, side
    crop: float  # middle share of images that evaluation cuts out
    noise: Settlement | None = None  # what became of the network's own


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.convert",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_network(parser.add_argument_group("what is converted"), timm_alone=True)
    to = parser.add_argument_group("to what")
    to.add_argument("--to", required=True, choices=FORMS, help="the form")
    to.add_argument("--out", required=True, metavar="PATH", help="a folder, or a .onnx or .pt2 file")
    to.add_argument("--force", action="store_true", help="write over what is there")
    check = parser.add_argument_group("checked on")
    check.add_argument("--data", metavar="URL", help="shards (the run's validation images; else random pixels)")
    check.add_argument("--images", type=int, default=16, help="the first so many (%(default)s)")
    entry = parser.add_argument_group("of a RobustBench entry")
    entry.add_argument("--dataset", choices=("cifar10", "cifar100", "imagenet"), help="RobustBench's name of the data")
    entry.add_argument("--name", help="of the entry (the run's name, or --model)")
    entry.add_argument("--threat", choices=("linf", "l2"), help="threat model (the run's)")
    entry.add_argument("--eps", type=number, help="radius, such as 8/255 (the run's)")
    entry.add_argument("--report", metavar="FILE", help="eval.json of tools.eval on the same weights: the accuracies")
    entry.add_argument(
        "--say", action="append", default=[], metavar="KEY=VALUE", help="link, name, authors, venue, ..."
    )
    found = parser.parse_args(words)
    if (found.checkpoint is None) == (found.model is None):
        parser.error("name a checkpoint, or a timm model by --model")
    if (found.model is None) != (found.weights is None):
        parser.error("--model and --weights go together: a checkpoint has a model and weights of its own")
    if found.to == "robustbench" and found.dataset is None:
        parser.error("--to robustbench needs --dataset: the list that the network is to stand in")
    if found.images < 1:
        parser.error(f"--images {found.images}: the check needs at least 1")
    suffix = SUFFIX.get(found.to)
    if suffix and Path(found.out).suffix != suffix:
        parser.error(f"--out {found.out}: name a file that ends in {suffix}")
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Write, load again, compare; only then does --out stand."""
    from robust_train.subject import Subject

    asked = arguments(words)
    out = Path(asked.out)
    vacant(out, asked.force)
    same = ("checkpoint", "model", "weights", "classes", "size", "crop", "data", "noise")
    subject = Subject(**{name: getattr(asked, name) for name in same}, averaged=not asked.raw)
    trained = trained_of(subject)
    entry = entry_of(asked, subject) if asked.to == "robustbench" else None
    images, whence = images_of(asked, subject, trained)
    making = out.with_name(f"making-{out.name}")
    try:
        write, read = form(asked.to, trained, entry)
        making.parent.mkdir(parents=True, exist_ok=True)
        remove(making)
        if asked.to not in SUFFIX:
            making.mkdir()
        write(making)
        found = compared(trained.network, again(read, making), images)
        place(making, out)
    finally:
        remove(making)
    print(f"{subject.title} as {asked.to}: {out}")
    print(f"checked on {len(images)} {whence}: {found}")
    for line in notes(asked.to, trained, entry, out):
        print(line)


def trained_of(subject: Subject) -> Trained:
    """The network of a subject, and how it is built."""
    from robust_train.evaluate.shifts import preprocessing
    from robust_train.models.blueprint import Blueprint
    from robust_train.models.timm import Timm

    recipe = subject.recipe
    if recipe is None:
        blueprint, network = Blueprint(Timm(str(subject.model))), subject.network()
        crop = preprocessing(network).get("crop", 0.875) if subject.crop is None else subject.crop
        return Trained(network, blueprint, subject.shape, crop)
    noise = None if subject.noise == "drawn" else subject.noise
    return Trained(subject.network(), recipe.network, recipe.shape, crop_of(subject), noise)


def crop_of(subject: Subject) -> float:
    """The middle share of images that a checkpoint's run evaluates on; 1 where its data set is not known here."""
    try:
        return getattr(getattr(subject.run, "data", None), "crop", 1.0)
    except RunError as error:
        print(f"note: the run's data set is not known here ({error}); crop 1 is written", file=sys.stderr)
        return 1.0


def entry_of(asked: argparse.Namespace, subject: Subject) -> Entry:
    """The RobustBench entry that is asked for. ConfigError where run and command line leave out what it needs."""
    from robust_train.read.parse import tree_of
    from robust_train.tools.robustbench_entry import Entry, spoken

    own = {} if subject.threat is None else tree_of(subject.threat)
    threat = own if asked.threat in (None, own.get("use")) else {"use": asked.threat}
    if asked.eps is not None:
        threat = {**threat, "eps": asked.eps}
    if not {"use", "eps"} <= threat.keys():
        raise ConfigError(
            f"{subject.title}: no run says the threat model and eps to list it in: --threat linf --eps 8/255"
        )
    run = subject.run
    name = asked.name or (subject.model if run is None else run.name)
    report = None if asked.report is None else report_of(asked.report, subject)
    noise = None if subject.noise == "drawn" else subject.noise
    return Entry(str(name), asked.dataset, threat, spoken(asked.say), report, noise)


def report_of(path: str, subject: Subject) -> dict[str, Any]:
    """tools.eval's report. ConfigError for another file, or a report on other weights."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        judged = {name: report["identity"][name] for name in ("weights", "averaged")}
        noise = report["identity"].get("noise", "drawn")
        report["figures"], report["flags"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--report {path} is no report of tools.eval ({error}): name its eval.json") from None
    if judged != {"weights": subject.digest, "averaged": subject.averaged}:
        raise ConfigError(
            f"--report {path} judges {report['weights']}, and other weights than {subject.source}: evaluate these"
        )
    if noise != subject.noise:
        raise ConfigError(
            f"--report {path} judges the network with its noise {noise}, and here it is {subject.noise}: evaluate it "
            f"by tools.eval --noise {subject.noise}"
        )
    return report


def images_of(asked: argparse.Namespace, subject: Subject, trained: Trained) -> tuple[Tensor, str]:
    """Images to compare on, in [0, 1], and what they are: validation images where they can be read."""
    import torch

    from robust_train.nouns import Place

    try:
        batches = subject.images().validation_batches(Place(), asked.images)
        return next(filter(len, batches)).to("cpu").images, "validation images"
    except RunError as error:
        if asked.data is not None:
            raise
        print(f"note: random pixels stand in for validation images ({error})", file=sys.stderr)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(asked.images, *trained.shape, generator=generator), "images of random pixels"


Writer = Callable[[Path], None]
Reader = Callable[[Path], Callable[["Tensor"], "Tensor"]]


def form(to: str, trained: Trained, entry: Entry | None) -> tuple[Writer, Reader]:
    """How a form is written and how it is read again. ConfigError for a form that cannot hold an ensemble."""
    from robust_train.models import exported
    from robust_train.models.ensemble import Ensemble

    network, blueprint, shape, crop = trained.network, trained.blueprint, trained.shape, trained.crop
    if to == "onnx":
        return lambda path: exported.write_onnx(network, shape, path), exported.read_onnx
    if to == "export":
        return lambda path: exported.write_program(network, shape, path), exported.read_program
    if isinstance(network, Ensemble):
        raise ConfigError(
            f"--to {to} holds one network, and this is an ensemble of {len(network.each)}: write the whole by --to "
            "onnx or --to export, or convert its members one by one"
        )
    if entry is not None:
        return lambda path: entry.write(network, blueprint, shape, crop, path), entry.read
    noise = trained.noise
    return lambda path: exported.write_folder(network, blueprint, shape, crop, path, noise), exported.read_folder


def again(read: Reader, path: Path) -> Callable[[Tensor], Tensor]:
    """What was written, as its reader loads it. CheckpointError where the weights do not fit."""
    try:
        return read(path)
    except RuntimeError as error:
        raise CheckpointError(
            f"what was written does not load again ({str(error).splitlines()[0]}), so it was removed. "
            "Convert to another form."
        ) from error


def compared(network: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """How far the logits of two networks are apart, in words: max |f(x) - g(x)| over images and classes.

    The other sees the first image alone and the rest together. Raises CheckpointError above TOLERANCE max(1, max |f|).
    """
    import torch

    with torch.no_grad():
        ours = network(images)
        theirs = torch.cat([other(part) for part in (images[:1], images[1:]) if len(part)])
    largest = float(ours.abs().max())
    allowed = TOLERANCE * max(1.0, largest)
    gap = float((ours - theirs).abs().max())
    said = f"largest logit difference {gap:.2g} (allowed: {allowed:.2g}; largest logit: {largest:.3g})"
    if not gap <= allowed:  # NaN is not
        raise CheckpointError(f"what was written answers otherwise than the network: {said}. It was removed.")
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    return f"{said}, same class on {same} of {len(images)}"


def notes(to: str, trained: Trained, entry: Entry | None, out: Path) -> list[str]:
    """How it is used, and what it leaves open."""
    from robust_train.models import exported
    from robust_train.models.ensemble import Ensemble

    if entry is not None:
        info = json.loads((out / "model_info" / f"{entry.path}.json").read_text(encoding="utf-8"))
        still_open = [name for name, value in info.items() if value is None]
        left = [f"left open (null in model_info): {', '.join(still_open)}"] if still_open else []
        return [
            f'use: entry.register(); load_model("{entry.name}", "models", "{entry.dataset}", "{entry.path.parts[1]}")',
            *left,
        ]
    if to == "timm":
        if exported.of_timm_alone(trained.blueprint) and not isinstance(trained.network, Ensemble):
            said = exported.timm_arguments(trained.blueprint.model, trained.network, trained.shape)
            words = "".join(f", {name}={value!r}" for name, value in said.items())
            name = exported.architecture(trained.blueprint.model)
            return [f'use: timm.create_model("{name}", checkpoint_path="{out / exported.WEIGHTS}"{words})']
        return ["note: timm alone cannot build it; config.json says how robust_train.models.exported.read_folder does"]
    if to == "onnx":
        return [
            f"opset {exported.OPSET}; input images [B, {', '.join(map(str, trained.shape))}] in [0, 1], output logits"
        ]
    return [f'use: torch.export.load("{out}").module()']


def vacant(out: Path, force: bool) -> None:
    """Refuse a place that is taken or cannot be written."""
    from robust_train.check import writable

    writable(out.parent, "--out PATH")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not force:
        raise ConfigError(f"{out} is there already: name another place by --out, or write over it by --force")


def place(making: Path, out: Path) -> None:
    """What was made, where it belongs: file by file into a folder, so that nothing else in it is touched."""
    if not making.is_dir():
        os.replace(making, out)
        return
    for path in sorted(path for path in making.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        target = out / path.relative_to(making)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def remove(path: Path) -> None:
    """A file or folder of ours that is not to stay."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
