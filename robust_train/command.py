"""The command line that `python -m robust_train` and `python -m launch.train` share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.read.paths import Parser

if TYPE_CHECKING:
    from robust_train.run import Run

SETTINGS = """settings are written key=value, dotted, in YAML:
  objective.attack.steps=7   batch=256   optimiser.lr='{use: cosine, peak: 0.1}'   validate.attack=null
numbers may be fractions: eps=8/255. A run's folder holds run.yaml, metrics.jsonl, timing.jsonl, summary.json,
checkpoints/, pictures/. The same command again goes on from the newest whole checkpoint.
"""


def parser(program: str, what: str) -> argparse.ArgumentParser:
    """The arguments both commands take."""
    found = Parser(
        program, description=what, epilog=SETTINGS, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    found.add_argument("run", nargs="?", help="the run: a YAML file")
    found.add_argument("settings", nargs="*", metavar="key=value", help="changes to the run")
    found.add_argument("--dry-run", action="store_true", help="print the whole run as YAML, defaults and all, and stop")
    found.add_argument(
        "--check", action="store_true", help="check data, model, disk and memory, print the forecast, write nothing"
    )
    found.add_argument(
        "--list",
        metavar="NOUN",
        nargs="?",
        const="",
        help="list what there is: objectives, attacks, models, ..., metrics; after a run, its own modules' too",
    )
    found.add_argument("-h", "--help", action="store_true", help="this, and every section and field of a run")
    return found


def inform(arguments: argparse.Namespace, found: argparse.ArgumentParser) -> bool:
    """Answer --help and --list; whether one was asked for."""
    if arguments.help:
        from robust_train.read.help import describe
        from robust_train.run import Run

        print(found.format_help())
        print(describe(Run))
        return True
    if arguments.list is not None:
        from robust_train.read.errors import ConfigError, nearest
        from robust_train.read.help import catalogue
        from robust_train.read.registry import registries

        if arguments.run is not None:
            read(arguments, None)  # the modules that it brings (`uses:`) are listed too
        if arguments.list == "":
            print("\n\n".join(f"{noun}:\n{catalogue(registry)}" for noun, registry in registries.items()))
            print("\nmetrics: what the numbers of a run are called (--list metrics)")
            return True
        if arguments.list == "metrics":
            from robust_train.records.names import listed

            print(listed())
            return True
        if arguments.list not in registries:
            nouns = [*registries, "metrics"]
            raise ConfigError(
                f"--list {arguments.list}: no such noun{nearest(arguments.list, nouns)} (there are {', '.join(nouns)})"
            )
        print(f"{arguments.list}:\n{catalogue(registries[arguments.list], with_fields=True)}")
        return True
    return False


def read(arguments: argparse.Namespace, default: str | None) -> Run:
    """The run that the arguments say."""
    from robust_train.read.errors import ConfigError
    from robust_train.run import Run

    path, settings = arguments.run, list(arguments.settings)
    if path is not None and "=" in path and not Path(path).exists():  # settings alone: of the default run
        settings.insert(0, path)
        path = None
    path = path or default
    if path is None:
        raise ConfigError("name a run: python -m robust_train configs/demo.yaml (--help lists every field)")
    return Run.load(Path(path), settings)


def here(run: Run, check_only: bool = False, devices: int = 1) -> dict[str, Any]:
    """Do a run in this process, on one device, with plain PyTorch; or only check it, for so many devices.

    Among processes that torchrun started (WORLD_SIZE above 1) it is one rank of the run, with DeepSpeed, as under Ray;
    what comes back is the leading rank's alone.
    """
    from robust_train import job
    from robust_train.engines.place import place_of_environment
    from robust_train.engines.plain import PlainEngine
    from robust_train.nouns import Place

    if not check_only and torchrun():
        from robust_train.engines.deepspeed import DeepSpeedEngine

        place = place_of_environment(run.cluster.gpu)
        summary = job.do(run, DeepSpeedEngine, place)
        return summary if place.leads else {}
    place = Place(device=device(run))
    if not check_only:
        return job.do(run, PlainEngine, place)
    print("\n".join(job.look(run, PlainEngine, place, devices)))
    return {}


def torchrun() -> bool:
    """Whether this process is one of several that torchrun, or something like it, started together."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def device(run: Run) -> str:
    """The device of a run in this process: the GPU where there is one. ConfigError where one is asked for in vain."""
    import torch

    from robust_train.read.errors import ConfigError

    if run.cluster.gpu and not torch.cuda.is_available():
        raise ConfigError(
            "run.cluster.gpu: a GPU was asked for, and PyTorch finds none here. Say cluster.gpu=false, or run where "
            "there is one."
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def table(rows: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A table of summaries: a row a run, accuracies in per cent, rates beside them."""
    from rich.console import Console
    from rich.table import Table

    columns = sorted({key for row in rows.values() for key in row if key.startswith("accuracy/")})
    shown = Table(title=title)
    shown.add_column("run")
    for key in [*columns, "images", "seconds", "images/s"]:
        shown.add_column(key.removeprefix("accuracy/"), justify="right")
    for name, row in rows.items():
        cells = [f"{100 * row[key]:.1f} %" if key in row else "not run" for key in columns]
        cells += [f"{row[key]:,.0f}" if key in row else "" for key in ("images", "seconds", "images/s")]
        shown.add_row(name, *cells)
    Console(file=sys.stdout).print(shown)
