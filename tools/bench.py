"""What a run's update costs beside a plain one, measured in turn in one process, against the law 2K + 3."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from robust_train.read.errors import main_guard

EPILOG = """examples
  python -m tools.bench configs/demo.yaml
  python -m tools.bench configs/cifar/rn18-rice.yaml engine.part=32 --rounds 5

Times of one process drift; ratios of what is measured in turn in it drift less. law is what the objective says it
costs, over what a plain update costs (3 forward passes); efficiency is the measured ratio over the law: at 1.0 an
update costs its arithmetic and nothing else, below it input gradients are cheaper than those of the weights.
"""


def arguments(words: list[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tools.bench", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("run", help="the run: a YAML file; its data need not be there")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turn (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    return parser.parse_intermixed_args(words)


@main_guard()
def main(words: list[str]) -> None:
    """Measure, show, and write the figures where asked."""
    asked = arguments(words)
    figures = measure(Path(asked.run), asked.settings, asked.rounds)
    show(asked.run, figures)
    if asked.json:
        Path(asked.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(path: Path, settings: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of a forward, a plain update and the run's update of one part, and their ratios.

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
    images = made_up(run, engine, engine.part).images

    def forward() -> None:
        with torch.no_grad(), engine.network.drops(None):
            engine.network(images)

    work = {
        "forward": forward,
        "plain": lambda: rehearse(plain, engine, engine.part),
        "update": lambda: rehearse(run, engine, engine.part),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, do in work.items():
            began = time.perf_counter()
            do()
            if engine.device.type == "cuda":
                torch.cuda.synchronize(engine.device)
            if number:
                seconds[name].append(time.perf_counter() - began)
    law = run.objective.cost() / plain.objective.cost()
    ratio = median(update / alone for update, alone in zip(seconds["update"], seconds["plain"], strict=True))
    found = {f"seconds/{name}": median(values) for name, values in seconds.items()}
    return {
        **found,
        "images": float(engine.part),
        "images/s": engine.part / found["seconds/update"],
        "law": law,
        "ratio": ratio,
        "efficiency": ratio / law,
    }


def show(title: str, figures: dict[str, float]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: one part of {figures['images']:.0f} images", title_justify="left")
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
