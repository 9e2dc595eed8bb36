"""What the commands on networks have in common: flags, and what becomes of them."""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError
from robust_train.read.paths import Parser

if TYPE_CHECKING:
    from robust_train.evaluate.store import Store
    from robust_train.evaluate.work import Deal
    from robust_train.nouns import Dataset
    from robust_train.subject import Subject

GOES_ON = """it goes on
  Each finished piece (a chunk of images and what was done to it) is kept below the run's eval/ folder: the same command
  again goes on where it was killed, and gives the same report. Devices change the time, not the verdicts.
"""


def number(text: str) -> float:
    """0.1 or 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number: write 0.03 or 8/255") from None


def parser(name: str, what: str | None, epilog: str) -> argparse.ArgumentParser:
    """Of a subcommand of tools.eval, or of a tool of its own."""
    return Parser(
        f"python -m tools.{name}",
        description=what,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def of_network(what: argparse._ArgumentGroup, timm_alone: bool = False) -> None:
    """The flags that name a network: those of robust_train.subject.Subject."""
    what.add_argument(
        "checkpoint",
        nargs="?",
        help="a run's folder (its best checkpoint, else its newest), a checkpoint, or the YAML file of an ensemble",
    )
    what.add_argument("--raw", action="store_true", help="the weights themselves where the run kept an average too")
    _of_model(what, timm_alone)
    what.add_argument("--weights", metavar="FILE", help="its weights: a local .safetensors, .pth or .pt file")
    what.add_argument("--crop", type=number, help="middle share of images for --model (its own, as timm says it)")
    told = "of the network itself, as a V1 front end's: as in training, one draw for all images, or none (%(default)s)"
    what.add_argument("--noise", choices=("drawn", "fixed", "off"), default="drawn", help=told)


def _of_model(what: argparse._ArgumentGroup, timm_alone: bool) -> None:
    """The flags that say a model instead of a checkpoint."""
    more = (
        ", one of `--list models` as NAME or {use: NAME, ...}, or MODULE:FUNCTION of your own that gives an nn.Module"
    )
    told = f"instead of a checkpoint: a timm model by name{'' if timm_alone else more}"
    what.add_argument("--model", metavar="NAME", help=told)
    what.add_argument("--classes", type=int, default=1000, help="classes of --model (%(default)s)")
    what.add_argument("--size", type=int, default=224, help="image side of --model (%(default)s)")
    if not timm_alone:
        what.add_argument("--channels", type=int, default=3, help="colours of images for --model (%(default)s)")
        of_uses(what)


def of_uses(what: argparse._ArgumentGroup) -> None:
    """The flag that brings a user's own modules."""
    what.add_argument(
        "--uses",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules of your own, imported first: what they register can be named (a run brings its own)",
    )


def of_images(where: argparse._ArgumentGroup, listed: bool = True) -> None:
    """The flags that name images."""
    own = "shards (path, folder, glob, brace list, URL), class folders, or a .csv of path,label (the run's own)"
    where.add_argument("--data", metavar="URL", help=own)
    if listed:
        told = "names of images, one a line: those alone are judged"
        where.add_argument("--list", metavar="FILE", dest="listed", help=told)
    of_amount(where)


def of_amount(where: argparse._ArgumentGroup) -> None:
    """The flags that say how many images."""
    where.add_argument("--images", type=int, help="the first so many (all)")
    where.add_argument("--chunk", type=int, default=256, help="consecutive images judged together (%(default)s)")


def of_devices(out: argparse._ArgumentGroup) -> None:
    """The flags that say where it runs."""
    out.add_argument("--device", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    out.add_argument("--devices", type=int, default=1, help="processes on a Ray cluster, one a device (%(default)s)")
    out.add_argument("--workers", type=int, default=0, help="processes a device that decode and corrupt (%(default)s)")
    out.add_argument("--address", help="of the Ray cluster (RAY_ADDRESS, else a local one)")


def of_report(out: argparse._ArgumentGroup, name: str) -> None:
    """The flag that says where the report goes."""
    out.add_argument("--json", metavar="FILE", help=f"the report ({name} in the run's folder, or in runs/NAME)")


def check(parser: argparse.ArgumentParser, found: argparse.Namespace, *needed: str) -> None:
    """Refuse a network that is not named, or named twice, and a model without what there is no run to take from."""
    if (found.checkpoint is None) == (found.model is None):
        parser.error("name a checkpoint, or a model by --model")
    if found.model is not None:
        own = ":" in found.model and "{" not in found.model  # its function may give it with weights
        wanted = [name for name in (*(() if own else ("weights",)), *needed) if getattr(found, name) is None]
        if wanted:
            missing = " and ".join(f"--{name}" for name in wanted)
            parser.error(f"--model needs {missing} too: there is no run to take them from")
    elif found.weights is not None:
        parser.error("--weights needs --model: a checkpoint has its own weights")


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
    from robust_train.read.uses import bring
    from robust_train.subject import Subject

    bring(asked.uses, "--uses")
    same = ("checkpoint", "model", "weights", "classes", "size", "channels", "crop", "data", "listed", "noise")
    given = {name: getattr(asked, name) for name in same if hasattr(asked, name)}
    return Subject(**given, averaged=not asked.raw)


def deal(asked: argparse.Namespace, subject: Any, device: str) -> Deal | None:
    """Who does the work, where it is not this process alone."""
    if asked.devices < 1:
        raise ConfigError(f"--devices {asked.devices}: at least one process does the work")
    if asked.workers < 0:
        raise ConfigError(f"--workers {asked.workers} must not be negative; 0: the evaluating process decodes itself")
    if asked.devices == 1 and asked.address is None:
        return None
    try:
        from robust_train.launch.address import address_of
        from robust_train.launch.deal import dealt
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


def of_subject(subject: Subject, noise: str | None, data: Dataset) -> list[str]:
    """What a reader must know of network and images, whatever they are judged under. noise: how its own is treated."""
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
    return [*notes, *pixels_of(data)]


def pixels_of(data: Dataset) -> list[str]:
    """What the images went through before the network saw them, a note a step."""
    return [f"pixels: {step}" for step in data.preprocessing()]
