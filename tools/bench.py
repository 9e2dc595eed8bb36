"""What a run's update costs beside a plain one, measured in turn in one process, against the law 2K + 3."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import Parser

if TYPE_CHECKING:
    from torch import Tensor, device

    from robust_train.models.v1 import V1Block

EPILOG = """examples
  python -m tools.bench configs/demo.yaml
  python -m tools.bench configs/cifar/rn18-rice.yaml engine.micro_batch=32 --rounds 5
  python -m tools.bench configs/v1/voneresnet50.yaml engine.micro_batch=8 --front

Times of one process drift; ratios of what is measured in turn in it drift less. law is what the objective says it
costs, over what a plain update costs (3 forward passes); efficiency is the measured ratio over the law: at 1.0 an
update costs its arithmetic and nothing else, below it input gradients are cheaper than those of the weights.

--front measures the parts of a V1 front end beside the stem that it replaces, with the gradient of the images (an
attack's share) and without: the whole front end, its noise off, the grouped bank of kernels alone, the same kernels as
a dense convolution over all channels, and as two convolutions (q_0 of all cells, q_90 of the complex ones); and the
whole network with either.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m tools.bench", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("run", help="the run: a YAML file; its data need not be there")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run")
    parser.add_argument("--front", action="store_true", help="measure the run's V1 front end instead of its update")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turn (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    return parser.parse_intermixed_args(words)


@main_guard()
def main(words: list[str]) -> None:
    """Measure, show, and write the figures where asked."""
    asked = arguments(words)
    if asked.front:
        figures = measure_front(Path(asked.run), asked.settings, asked.rounds)
        show_front(asked.run, figures)
    else:
        figures = measure(Path(asked.run), asked.settings, asked.rounds)
        show(asked.run, figures)
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(path: Path, settings: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of a forward, a plain update and the run's update of one micro-batch, and their ratios.

    An update is its objective's forwards and backwards; reductions, optimiser and data are left out. Each round takes
    the three in turn, so that what else the machine does meets all alike; one round before them warms up.
    """
    import torch

    from robust_train.command import device
    from robust_train.engines.plain import PlainEngine
    from robust_train.forecast import made_up, rehearse
    from robust_train.nouns import Place
    from robust_train.objectives.plain import Plain
    from robust_train.run import Run

    run = Run.load(path, settings)
    engine = PlainEngine(run, Place(device=device(run)))
    plain = replace(run, objective=Plain(), mixing=None)
    images = made_up(run.data, engine.micro_batch, engine.device, engine.dtype).images

    def forward() -> None:
        with torch.no_grad(), engine.network.drops(None):
            engine.network(images)

    work = {
        "forward": forward,
        "plain": lambda: rehearse(plain, engine, engine.micro_batch),
        "update": lambda: rehearse(run, engine, engine.micro_batch),
    }
    seconds = in_turn(work, rounds, engine.device)
    law = run.objective.cost() / plain.objective.cost()
    ratio = median(update / alone for update, alone in zip(seconds["update"], seconds["plain"], strict=True))
    found = {f"seconds/{name}": median(values) for name, values in seconds.items()}
    return {
        **found,
        "images": float(engine.micro_batch),
        "images/s": engine.micro_batch / found["seconds/update"],
        "law": law,
        "ratio": ratio,
        "efficiency": ratio / law,
    }


def in_turn(
    work: Mapping[str, Callable[[], object]],
    rounds: int,
    place: device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round; one round before them is not counted."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, do in work.items():
            began = clock()
            do()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            if number:
                seconds[name].append(clock() - began)
    return seconds


def measure_front(path: Path, settings: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of the parts of a run's V1 front end and of the stem that it replaces, and ratios to the stem's.

    Each also with the gradient of the images, all in turn. On a CPU in processor time, which other processes take less
    from than from the clock's: what is measured is short. ConfigError for a run without a V1 front end.
    """
    import torch

    from robust_train.command import device
    from robust_train.models.front import find_stem
    from robust_train.models.v1 import V1
    from robust_train.run import Run

    run = Run.load(path, settings)
    blueprint, data = run.network, run.data
    v1 = next((edit for edit in blueprint.edits if isinstance(edit, V1)), None)
    if v1 is None:
        raise ConfigError(f"{path}: run.network.edits name no v1: --front measures one. Name a run of configs/v1")
    place, count = torch.device(device(run)), run.engine.micro_batch or run.batch
    bare, fronted = (replace(run, network=replace(blueprint, edits=edits)) for edits in ((), (v1,)))
    plain, network = bare.build(place).eval(), fronted.build(place).eval()
    stem = find_stem(plain.model)
    layers = torch.nn.Sequential(*(plain.model.get_submodule(name) for name in (stem.name, *stem.ended)))
    front = network.model.get_submodule(stem.name)
    images = torch.rand(count, *data.shape, device=place)
    seen = images if v1.lgn is None else front.get_submodule("lgn")(images).detach()

    def quiet(pixels: Tensor) -> Tensor:
        with network.noise(mode="off"):
            return front(pixels)

    def subcortical(pixels: Tensor) -> Tensor:
        with network.noise(mode="off"):
            return front.get_submodule("lgn")(pixels)

    parts: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "stem": (layers, images),
        "front": (front, images),
        "front without noise": (quiet, images),
        **({} if v1.lgn is None else {"lgn without noise": (subcortical, images)}),
        **{name: (bank, seen) for name, bank in banks(front.get_submodule("block")).items()},  # type: ignore[arg-type]
        "network, own stem": (plain, images),
        "network, front": (network, images),
    }
    work: dict[str, Callable[[], object]] = {}
    for name, (layer, pixels) in parts.items():
        work[name] = partial(ahead, layer, pixels)
        work[f"{name}, gradient"] = partial(back, layer, pixels)
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    seconds = in_turn(work, rounds, place, clock)
    found = {f"seconds/{name}": median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        stems = seconds["stem, gradient" if name.endswith(", gradient") else "stem"]
        found[f"ratio/{name}"] = median(mine / theirs for mine, theirs in zip(values, stems, strict=True))
    return {**found, "images": float(count), "size": float(data.shape[-1])}


def ahead(layer: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    """A forward without a graph."""
    import torch

    with torch.no_grad():
        layer(pixels)


def back(layer: Callable[[Tensor], Tensor], pixels: Tensor) -> None:
    """A forward, and the gradient of the images alone: what an attack asks for."""
    import torch

    pixels = pixels.detach().requires_grad_()
    torch.autograd.grad(layer(pixels).sum(), pixels)


def banks(block: V1Block) -> dict[str, Callable[[Tensor], Tensor]]:
    """The kernels of a V1 block as one grouped convolution, as one dense one, and as two dense ones."""
    import torch
    from torch.nn import functional as F

    front, groups = block.front, block.groups
    most = len(block.weight) // groups
    dense = block.weight.new_zeros(len(block.place), groups, *block.weight.shape[2:])
    kernel = torch.arange(len(block.place), device=dense.device)
    dense[kernel, block.place // most] = block.weight[block.place, 0]
    straight, shifted = dense.split([front.simple + front.complex, front.complex])

    def convolved(pixels: Tensor, weight: Tensor, grouped: int = 1) -> Tensor:
        return F.conv2d(pixels, weight, None, front.stride, front.ksize // 2, groups=grouped)

    return {
        "bank, grouped": lambda pixels: convolved(pixels, block.weight, groups)[:, block.place],
        "bank, dense": lambda pixels: convolved(pixels, dense),
        "bank, two dense": lambda pixels: torch.cat([convolved(pixels, straight), convolved(pixels, shifted)], 1),
    }


def show_front(title: str, figures: dict[str, float]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    images, size = figures["images"], figures["size"]
    table = Table(title=f"{title}: {images:.0f} images of {size:.0f} pixels", title_justify="left")
    for column in ("", "milliseconds", "in stems", "with gradient", "in stems"):
        table.add_column(column, justify="left" if not column else "right")
    for key in figures:
        name = key.removeprefix("seconds/")
        if name == key or name.endswith(", gradient"):
            continue
        cells = []
        for row in (name, f"{name}, gradient"):
            cells += [f"{1000 * figures[f'seconds/{row}']:.1f}", f"{figures[f'ratio/{row}']:.2f}"]
        table.add_row(name, *cells)
    Console(file=sys.stdout).print(table)


def show(title: str, figures: dict[str, float]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: one micro-batch of {figures['images']:.0f} images", title_justify="left")
    for column in ("", "milliseconds", "in forwards"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("forward", "plain", "update"):
        seconds = figures[f"seconds/{name}"]
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / figures['seconds/forward']:.2f}")
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(
        f"update / plain {figures['ratio']:.2f}, law {figures['law']:.2f}, efficiency {figures['efficiency']:.2f}; "
        f"{figures['images/s']:,.0f} images/s",
        highlight=False,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
