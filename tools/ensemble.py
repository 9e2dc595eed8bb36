"""Several checkpoints as one network: the YAML file that any command takes in place of a checkpoint."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import Parser
from robust_train.tools.shared import device_of, number

if TYPE_CHECKING:
    from torch import Tensor

    from robust_train.models.ensemble import Ensemble, Mean
    from robust_train.nouns import Batch, Dataset

EPILOG = """examples
  python -m tools.ensemble v1.yaml runs/v1/standard runs/v1/low-sf runs/v1/high-sf
      the mean of their logits
  python -m tools.ensemble v1.yaml runs/v1/standard runs/v1/low-sf --mean probabilities --weights 0.6,0.4
  python -m tools.ensemble v1.yaml runs/v1/standard runs/v1/low-sf --fit 'held-out-*.tar' --images 5000
      the shares with the least cross-entropy on 5,000 images that none of them was trained or picked on
  python -m tools.eval corruptions v1.yaml --kinds noise,blur
      the file in place of a checkpoint: tools.eval, transfer, compare, convert, robust_train.load

what the file holds
  members: checkpoints or runs' folders, relative to the file; mean: of logits, or of probabilities; weights: a share
  each, null for equal ones; fitted: where they were fitted, on which images (checksums of their shards), the loss and
  accuracy of each member, of the ensemble, and of one of equal shares, and each member's temperature T: the number its
  logits would have to be divided by for the least cross-entropy. A mean of logits follows the member with the largest:
  that with T far above the others' says more than it knows.

which images
  Weights that were fitted on test images flatter the figure on these. Images of shards that a member was trained or
  validated on are noted. Weights fitted on corrupted images would make its corruption figures worthless: give clean
  ones.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.ensemble",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT.yaml", help="the file to write")
    parser.add_argument("members", nargs="+", metavar="CHECKPOINT", help="a run's folder or a checkpoint")
    parser.add_argument("--mean", choices=("logits", "probabilities"), default="logits", help="of what (%(default)s)")
    shares = parser.add_mutually_exclusive_group()
    shares.add_argument("--weights", type=parts, metavar="0.5,0.5", help="a share each, together 1 (equal ones)")
    shares.add_argument("--fit", metavar="SHARDS", help="fit them on held-out clean images of these shards")
    parser.add_argument("--images", type=int, help="of --fit: so many images (all)")
    parser.add_argument("--skip", type=int, default=0, help="of --fit: after the first so many (%(default)s)")
    parser.add_argument("--device", help="of --fit: cpu, cuda, cuda:1 (the GPU where there is one)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    found = parser.parse_args(words)
    if Path(found.out).suffix not in (".yaml", ".yml"):
        parser.error(f"{found.out}: name the ensemble's file first, one that ends in .yaml")
    if found.fit is None and (found.images is not None or found.skip):
        parser.error("--images and --skip say which images of --fit")
    if (found.images is not None and found.images < 1) or found.skip < 0:
        parser.error(f"--images {found.images} and --skip {found.skip}: at least 1 image, and none below the first")
    return found


def parts(text: str) -> tuple[float, ...]:
    """0.5,0.5 or 1/3,2/3."""
    return tuple(number(part) for part in text.split(","))


@main_guard()
def main(words: list[str]) -> None:
    """Try the members as one network, fit what is asked for, and write the file."""
    from robust_train.check import writable
    from robust_train.disk import write_text
    from robust_train.trained import Members, together

    asked = arguments(words)
    out = Path(asked.out)
    writable(out.parent, "OUT.yaml")
    if out.exists() and not asked.force:
        raise ConfigError(f"{out} is there already: name another file, or write over it by --force")
    device = device_of(asked)
    named = tuple(os.path.relpath(member, out.parent) for member in asked.members)
    ensemble = together(out, asked.members, asked.mean, asked.weights, device)
    weights, fitted = asked.weights, None
    if asked.fit is not None:
        weights, fitted = fit(ensemble, asked, device)
    text = Members(named, asked.mean, weights, fitted).dump()
    write_text(out, text)
    print(f"ensemble of {len(named)}: {out}")


def fit(ensemble: Ensemble, asked: argparse.Namespace, device: str) -> tuple[tuple[float, ...], dict[str, Any]]:
    """The shares with the least loss on the images asked for, and how they were found."""
    from robust_train.data.manifest import shard_name
    from robust_train.evaluate.mixture import answered, fit_weights, temperature
    from robust_train.keyed import Key
    from robust_train.subject import Subject

    data = Subject(checkpoint=asked.members[0], data=asked.fit).images()
    sums = {shard_name(url): digest for url, digest in data.checksums().items()}
    for line in seen_before(asked.members, sums):
        print(f"note: {line}")
    logits, labels = answered(ensemble, held_out(data, asked.images, asked.skip), Key(0).of("fit"), device)
    found = fit_weights(logits, labels, asked.mean)
    weights = tuple(float(share) for share in found)
    equal = found.new_full(found.shape, 1 / len(found))
    members = [
        {"member": name, **measured(own[None], labels, "logits"), "temperature": temperature(own, labels)}
        for name, own in zip(asked.members, logits, strict=True)
    ]
    fitted = {
        "data": sums,
        "images": len(labels),
        "skip": asked.skip,
        "ensemble": measured(logits, labels, asked.mean, found),
        "equal": measured(logits, labels, asked.mean, equal),
        "members": [{name: value for name, value in one.items() if name != "member"} for one in members],
    }
    show(members, weights, fitted)
    return weights, fitted


def held_out(data: Dataset, images: int | None, skip: int, chunk: int = 256) -> Iterator[Batch]:
    """The validation images from number `skip` on, so many of them; broken ones are left out."""
    from robust_train.nouns import Place

    for batch in data.validation_batches(Place(), chunk, None if images is None else skip + images):
        wanted = batch.position >= skip
        if bool(wanted.any()):
            yield batch[wanted]


def measured(logits: Tensor, labels: Tensor, mean: Mean, weights: Tensor | None = None) -> dict[str, float]:
    """Accuracy and mean cross-entropy of an ensemble's answers; weights: None for one member alone."""
    from robust_train.evaluate.mixture import loss_of
    from robust_train.losses import correct
    from robust_train.models.ensemble import mixed

    shares = logits.new_ones(1).double() if weights is None else weights
    accuracy = float(correct(mixed(logits.double(), shares, mean), labels).mean())
    return {"accuracy": accuracy, "loss": loss_of(logits, labels, shares, mean)}


def seen_before(members: list[str], sums: dict[str, str]) -> list[str]:
    """Which members were trained or validated on some of the shards, by checksum."""
    from robust_train import checkpoint

    lines = []
    for member in members:
        known = checkpoint.find(member) / "data.json"
        if not known.is_file():
            lines.append(f"{member} does not say what it was trained on: whether these images are new to it is open")
            continue
        said = json.loads(known.read_text(encoding="utf-8")).values()
        theirs = {str(sums_of).split()[0] for sums_of in said}  # of the shard; what follows is its index's
        shared = [name for name, digest in sums.items() if digest in theirs]
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            lines.append(
                f"{member} was trained or validated on images of {shared[0]}{more}: weights fitted on images that it "
                "was trained or picked on, or that it is judged on, flatter"
            )
    return lines


def show(members: list[dict[str, Any]], weights: tuple[float, ...], fitted: dict[str, Any]) -> None:
    """Print what was found of each member, and of the ensemble."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("member", "weight", "accuracy", "loss", "temperature"):
        table.add_column(head, justify="left" if head == "member" else "right")
    rows = [(one["member"], f"{share:.4f}", one) for one, share in zip(members, weights, strict=True)]
    rows += [("all, equal weights", "", fitted["equal"]), ("all, these weights", "1", fitted["ensemble"])]
    for name, share, one in rows:
        heat = f"{one['temperature']:.3g}" if "temperature" in one else ""
        loss = f"{one['loss']:.4f}" if math.isfinite(one["loss"]) else "inf"
        table.add_row(Text(name), share, f"{one['accuracy']:.2%}", loss, heat)
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    console.print(f"\n{fitted['images']:,} held-out images", markup=False)
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
