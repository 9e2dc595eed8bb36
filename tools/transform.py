"""A trained network in another structure: a transform of a checkpoint, written as a checkpoint like any other."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from robust_train.read.errors import ConfigError, RunError, main_guard
from robust_train.read.paths import Parser
from robust_train.tools.shared import device_of

if TYPE_CHECKING:
    from torch import Tensor

    from robust_train.models.blueprint import Recipe
    from robust_train.nouns import Batch, Transform
    from robust_train.run import Run

EPILOG = """examples
  python -m tools.transform runs/demo runs/demo-svd --by '{use: svd, share: 0.5}'
  python -m tools.eval runs/demo-svd
  python -m robust_train runs/demo-svd/run.yaml start=runs/demo-svd folder=runs/demo-svd-trained optimiser.lr=0.01
      the compressed network trained on, against the same attack
  python -m tools.convert runs/demo-svd --to onnx --out demo-svd.onnx

what is written
  OUT: weights.safetensors; network.yaml, with the edit that makes the structure after the network's own; run.yaml, the
  run with that edit, where the checkpoint's run can be read here; transform.json: what was done to which checkpoint.
  python -m robust_train --list transforms says what there is.

which images
  A transform that looks at images is given those of the run's first updates, in their order. --seed decides what is
  random in it.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        "python -m tools.transform",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="a run's folder (its best checkpoint, else its newest), or a checkpoint")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument("--by", required=True, metavar="TRANSFORM", help="such as '{use: svd, rank: 16}'")
    parser.add_argument("--raw", action="store_true", help="the weights themselves where the run kept an average too")
    parser.add_argument("--seed", type=int, default=0, help="of what is random in it (%(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    return parser.parse_args(words)


@main_guard()
def main(words: list[str]) -> None:
    """Read, transform, build the other network from what would be written, compare, write."""
    from robust_train.check import writable
    from robust_train.models.weights import fit_weights
    from robust_train.nouns import Transform
    from robust_train.read.parse import parse, tree_of
    from robust_train.read.yaml import read
    from robust_train.trained import checkpoint, is_ensemble, network_of, put, recipe_of

    asked = arguments(words)
    out = Path(asked.out)
    writable(out.parent, "OUT")
    if out.exists() and not asked.force:
        raise ConfigError(f"{out} is there already: name another folder, or write over it by --force")
    if is_ensemble(asked.checkpoint):
        raise ConfigError(f"{asked.checkpoint} is an ensemble: transform its members one by one, and name these in one")
    folder = checkpoint.find(asked.checkpoint)
    recipe, run = recipe_of(folder), run_here(folder)  # the modules that it brings may hold the transform
    transform = parse(cast(Any, Transform), read(asked.by, "--by"), "transform", "--by")
    device = device_of(asked)
    network: Any = network_of(folder, device, not asked.raw)
    other, weights = applied(transform, network, recipe, batches_of(run, device), asked.seed)
    made = other.build()
    fit_weights(made.model, weights, f"what {transform.use} made")
    texts = {"transform.json": json.dumps(said_of(asked, folder, tree_of(transform)), indent=1) + "\n"}
    if run is not None:
        edits = (*run.network.edits, other.network.edits[-1])
        texts["run.yaml"] = replace(run, network=replace(run.network, edits=edits)).dump()
    put(out, other, weights, texts)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (network, made))
    print(f"{folder} by {transform.use}: {out}")
    print(f"weights: {before:,} before, {after:,} now ({after / before:.1%})")
    print(gap(network.cpu(), made.eval(), recipe.shape))


def applied(
    transform: Transform, network: Any, recipe: Recipe, batches: Iterator[Batch], seed: int
) -> tuple[Recipe, dict[str, Tensor]]:
    """How the transformed network is built, and its weights."""
    import torch

    from robust_train.keyed import Key

    with torch.random.fork_rng():
        edit, weights = transform(network, batches, Key(seed).of("transform"))
    edits = (*recipe.network.edits, edit)
    return replace(recipe, network=replace(recipe.network, edits=edits)), weights


def run_here(folder: Path) -> Run | None:
    """The run of a checkpoint, where it can be read here."""
    from robust_train.loading import run_of

    try:
        return run_of(folder)
    except RunError as error:
        print(f"note: the checkpoint's run is not known here, so no run.yaml is written ({error})", file=sys.stderr)
        return None


def batches_of(run: Run | None, device: str) -> Iterator[Batch]:
    """Training images of a run, in [0, 1]; its data set is touched when the first is asked for, not before."""
    from robust_train.nouns import Place

    if run is None:
        raise ConfigError(
            "this transform looks at images, and the checkpoint's run, which says where, is not known here"
        )
    run.data.prepare()
    yield from (batch.to(device) for batch in run.batches(Place(), 0))


def said_of(asked: argparse.Namespace, folder: Path, transform: Any) -> dict[str, Any]:
    """What was done to which checkpoint."""
    from robust_train.fingerprint import checksum

    return {
        "checkpoint": str(folder),
        "manifest": checksum(folder),
        "averaged": not asked.raw,
        "transform": transform,
        "seed": asked.seed,
    }


def gap(one: Any, other: Any, shape: tuple[int, ...]) -> str:
    """How far the logits of two networks are apart on random pixels, in words."""
    import torch

    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), one.noise(mode="off"), other.noise(mode="off"):
        ours, theirs = one(images), other(images)
    apart, largest = float((ours - theirs).abs().max()), float(ours.abs().max())
    return f"largest logit difference on random pixels: {apart:.2g} (largest logit: {largest:.3g})"


if __name__ == "__main__":
    main(sys.argv[1:])
