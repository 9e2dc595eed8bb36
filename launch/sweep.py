"""Many runs as one job: packed on the devices of a Ray cluster, each resumable, one table at the end."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust_train.launch.packing import LOG, Summary, Unfinished, sweep
from robust_train.read import overrides, yaml
from robust_train.read.errors import ConfigError, main_guard, nearest
from robust_train.read.parse import Tree, difference, load_tree, parse
from robust_train.read.paths import FilePath, Parser, run_file

if TYPE_CHECKING:
    from robust_train.run import Run

FAILED = 1  # exit code where some runs failed and all others are done
GIVEN = ("name", "folder", "seed")  # fields of a run that the sweep decides

USE = """settings are written key=value: seeds=[0, 1]   folder=runs/other   retries=5   cluster.address=auto
those of every run begin with settings: settings.updates=100   settings.cluster.gpu=true
FOLDER/seedS/NAME is a run's folder like any other, with what it said in log.txt; FOLDER/sweep.json holds all summaries.
The same command again goes on: what is done is not done anew. Exit code 1: some failed, all others are done.
"""


@dataclass(frozen=True)
class Address:
    """Where the runs of a sweep are done."""

    address: str | None = None  # cluster to join (auto, HOST:PORT); null: the one it runs inside, or a local one


@dataclass(frozen=True)
class Member:
    """A run of a sweep, or several alike but for their seeds: what is its own beside what all share."""

    settings: tuple[str, ...] | dict[str, Any] = ()  # changes to the run: [key=value, ...], or {dotted.key: value}
    copies: int = 1  # runs alike but for their seeds: NAME-0 to NAME-(copies - 1)
    index: tuple[int, ...] | None = None  # i of each copy, whose seed is 100 s + i; null: its place among all, from 0

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies={self.copies} must be at least 1")
        if self.index is not None and len(self.index) != self.copies:
            raise ValueError(f"index={list(self.index)} must name one number for each of {self.copies} copies")
        if self.index is not None and not all(0 <= i < 100 for i in self.index):
            raise ValueError(f"index={list(self.index)} must lie from 0 to 99: a run's seed is 100 s + index")

    def names(self, name: str) -> list[str]:
        """What its runs are called."""
        return [name] if self.copies == 1 else [f"{name}-{copy}" for copy in range(self.copies)]


@dataclass(frozen=True)
class Sweep:
    """Many runs that share most of what they are. `python -m launch.sweep SWEEP.yaml` does them.

    The run of member i and study seed s has the seed 100 s + i, the name NAME and the folder FOLDER/seedS/NAME.
    """

    run: FilePath  # the YAML of the run that all share, relative to the sweep's own
    folder: FilePath  # where the runs go: FOLDER/seed0/NAME, ...
    members: dict[str, Member]  # what they differ in, by name
    seeds: tuple[int, ...] = (0,)  # study seeds: all members are done for each
    settings: tuple[str, ...] | dict[str, Any] = ()  # changes to every run; a member's own come after them
    retries: int = 2  # times that a run which failed is started again; it goes on from its last checkpoint
    cluster: Address = field(default_factory=Address)  # where

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members names none: give at least one, members: {standard: {}}")
        for name in self.members:
            if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
                raise ValueError(f"members.{name} cannot be a folder's name: use letters, digits, - _ and .")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds={list(self.seeds)} must be numbers from 0 on, each once")
        if self.retries < 0:
            raise ValueError(f"retries={self.retries} must not be negative")
        indices = self.indices()
        for what, values in (("the name", [name for name, _, _ in indices]), ("the index", [i for _, i, _ in indices])):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(
                    f"members: two runs have {what} {twice[0]}: name them apart, or give each its own number (index)"
                )
        if max(i for _, i, _ in indices) > 99:
            raise ValueError(
                f"members: {len(indices)} runs a seed, and only 100 have seeds of their own (100 s + index)"
            )

    @classmethod
    def load(cls, path: str | Path, changes: Iterable[str] = ()) -> Sweep:
        """The sweep of a YAML file, with key=value changes; its `run` as it is found from here. Raises ConfigError."""
        path = run_file(path)
        shared, own = [], []
        for change in changes:
            shared.append(change.removeprefix("settings.")) if change.startswith("settings.") else own.append(change)
        known = [f.name for f in fields(cls)]
        for change in own:
            if (head := re.split(r"[.=]", change)[0].strip()) not in known:
                raise ConfigError(
                    f"{change}: a sweep has no field {head}{nearest(head, known)}. A change to every run begins with "
                    f"settings: settings.{change}"
                )
        tree = overrides.apply(load_tree(path), own)
        if shared:
            tree = {**tree, "settings": [*words(tree.get("settings") or ()), *shared]}
        found = parse(cls, tree, "sweep", str(path))
        return cls(**{**vars(found), "run": str(path.parent / found.run)})

    def indices(self) -> list[tuple[str, int, Member]]:
        """(name, i, member) of each run of a study seed, in order."""
        found: list[tuple[str, int, Member]] = []
        for title, member in self.members.items():
            for copy, name in enumerate(member.names(title)):
                found.append((name, len(found) if member.index is None else member.index[copy], member))
        return found

    def shared(self) -> Run:
        """The run that all share, with the sweep's own settings. Raises ConfigError."""
        return self._run(self._tree(), "run", {})

    def runs(self) -> dict[str, Run]:
        """Every run by its name, seedS/NAME: all of the first seed, then the next. Raises ConfigError."""
        self.shared()  # a mistake in what all share is no member's
        return dict(self._runs())

    def _runs(self) -> Iterator[tuple[str, Run]]:
        tree = self._tree()
        for seed in self.seeds:
            for name, index, member in self.indices():
                place = f"seed{seed}/{name}"
                given = {"name": name, "folder": f"{self.folder}/{place}", "seed": 100 * seed + index}
                yield place, self._run(changed(tree, member.settings, f"members.{name}"), f"members.{name}", given)

    def _tree(self) -> Tree:
        return changed(load_tree(Path(self.run)), self.settings, "settings")

    def _run(self, tree: Tree, where: str, given: Mapping[str, Any]) -> Run:
        from robust_train.run import Run

        return Run.of({**tree, **given}, where, f"{self.run} as {where} of the sweep has it")


def changed(tree: Tree, settings: Iterable[str] | Mapping[str, Any], where: str) -> Tree:
    """A run's tree with settings laid over it. Raises ConfigError that says where they stand."""
    said = words(settings)
    for word in said:
        if (head := re.split(r"[.=]", word)[0].strip()) in GIVEN:
            raise ConfigError(f"{where}: {word}: the sweep itself gives each run its {head} (folder, seeds, index)")
    try:
        return overrides.apply(tree, said)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def words(settings: Iterable[str] | Mapping[str, Any]) -> list[str]:
    """Settings as key=value, however they are written."""
    if isinstance(settings, Mapping):
        return [f"{key}={yaml.brief(value)}" for key, value in settings.items()]
    return list(settings)


def sheet(
    program: str, about: str | None, use: str, what: str, kind: type, example: str, argv: list[str], **more: Any
) -> argparse.Namespace | None:
    """What the command line of a sheet of runs asks for; None where it asked for --help, which is given.

    what: the noun of its YAML file, read as `kind`; more: a further option, by name, with add_argument's words.
    """
    parser = Parser(
        program,
        description=about,
        epilog=use,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("file", nargs="?", metavar=what, help=f"the {what}: a YAML file")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"changes to the {what}")
    for name, option in more.items():
        parser.add_argument(f"--{name}", **option)
    parser.add_argument("--dry-run", action="store_true", help="print every run's folder, seed and what is its own")
    parser.add_argument("--check", action="store_true", help="check the first run; print the forecast of all")
    parser.add_argument("-h", "--help", action="store_true", help=f"this, and every field of a {what}")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.help:
        from robust_train.read.help import describe

        print(parser.format_help())
        print(describe(kind, what))
        return None
    if arguments.file is None:
        raise ConfigError(f"name a {what}: {program} {example} (--help lists its fields)")
    return arguments


@contextmanager
def failing() -> Iterator[None]:
    """Where some runs failed and all others are done: says so, and ends with exit code 1."""
    try:
        yield
    except Unfinished as error:
        print(f"{error}\nWhat each of them said is in its {LOG}.", file=sys.stderr)
        raise SystemExit(FAILED) from None


@main_guard()
def main(argv: list[str]) -> None:
    example = "configs/debug/v1-sweep.yaml"
    arguments = sheet("python -m launch.sweep", __doc__, USE, "sweep", Sweep, example, argv)
    if arguments is None:
        return
    found = Sweep.load(arguments.file, arguments.settings)
    if arguments.dry_run:
        print("\n".join(listed(found)))
    elif arguments.check:
        print("\n".join(checked(found.runs())))
    else:
        do(found)


def do(found: Sweep) -> None:
    """Do a sweep, print its table, write its sweep.json. Exits with code 1 where some runs failed."""
    runs = found.runs()  # before the working folder becomes what relative paths are relative to
    address = found.cluster.address or found.shared().cluster.address
    failed: dict[str, str] = {}
    trouble: Unfinished | None = None
    try:
        done = sweep(runs, found.retries, address)
    except Unfinished as error:
        trouble, done, failed = error, error.done, error.failed
    record(Path(found.folder), done, failed)
    table(found, done, failed)
    if trouble is not None:
        with failing():
            raise trouble


def record(folder: Path, done: Mapping[str, Summary], failed: Mapping[str, str]) -> None:
    """Write sweep.json: every summary by its run's name, and why those failed that did."""
    from robust_train import disk

    text = json.dumps({"runs": done, "failed": failed}, indent=2, ensure_ascii=False)
    disk.write_text(folder / "sweep.json", text + "\n")


def listed(found: Sweep) -> Iterator[str]:
    """A line for each run: name, folder, seed; below it what differs from the run that all share."""
    shared = found.shared()
    runs = found.runs()
    yield f"{len(runs)} runs of {found.run}, in this order:"
    for name, run in runs.items():
        yield f"{name}  {run.folder}  seed {run.seed}"
        for line in difference(shared, run):
            if line.partition(":")[0] not in GIVEN:
                yield f"    {textwrap.shorten(line, 112, placeholder=' ...')}"


def checked(runs: Mapping[str, Run]) -> list[str]:
    """What is found of the first run before it begins, and what all that are not done will take."""
    from robust_train import command, job
    from robust_train.engines.plain import PlainEngine
    from robust_train.nouns import Place
    from robust_train.ownership import finished
    from robust_train.records.progress import duration

    name, first = next(iter(runs.items()))
    lines, expected = job.foreseen(first, PlainEngine, Place(device=command.device(first)), first.cluster.devices)
    left = [run for run in runs.values() if not finished(run)]
    before = len(runs) - len(left)
    hours = sum(run.updates * run.batch * run.cluster.devices for run in left) / expected.images_per_second / 3600
    cost = "" if expected.rate is None else f", {hours * expected.rate:.3g} {expected.unit}"
    return [
        f"{name}, the first of {len(runs)} runs:",
        *lines,
        f"forecast of it: {expected}",
        f"forecast of all: {len(left)} runs to do ({before} done before), {hours:.3g} device-hours{cost}",
        f"on n devices: 1/n of {duration(3600 * hours)}",
        "assumed: each at the pace of the first, from its beginning; without start, validation and evaluation",
    ]


def table(found: Sweep, done: Mapping[str, Summary], failed: Mapping[str, str]) -> None:
    """Print a row a member: accuracies (over several seeds their mean and its standard error), and what it took."""
    from rich.console import Console
    from rich.table import Table

    columns = sorted({key for summary in done.values() for key in summary if key.startswith("accuracy/")})
    shown = Table(title=f"{found.folder}: mean over seeds {', '.join(map(str, found.seeds))}, with its standard error")
    if len(found.seeds) == 1:
        shown.title = f"{found.folder}: images of training, seconds and images/s of each run's last start"
    shown.add_column("run")
    collapses = any("probe/collapses" in summary for summary in done.values())
    for key in [
        *columns,
        *(["collapsed"] if collapses else []),
        "images",
        "seconds",
        "images/s",
        *(["failed"] if failed else []),
    ]:
        shown.add_column(key.removeprefix("accuracy/"), justify="left" if key == "failed" else "right")
    for name, _, _ in found.indices():
        places = [f"seed{seed}/{name}" for seed in found.seeds]
        rows = [done[place] for place in places if place in done]
        cells = [percent([row[key] for row in rows if key in row]) for key in columns]
        if collapses:
            watched = [row["probe/collapses"] for row in rows if "probe/collapses" in row]
            cells.append(f"{sum(map(bool, watched))} of {len(watched)}" if watched else "not watched")
        for key in ("images", "seconds", "images/s"):
            values = [row[key] for row in rows if key in row]
            cells.append(f"{statistics.fmean(values):,.0f}" if values else "")
        wrong = [textwrap.shorten(f"{place}: {failed[place]}", 60) for place in places if place in failed]
        shown.add_row(name, *cells, *(["\n".join(wrong)] if failed else []))
    console = Console(file=sys.stdout, markup=False)
    if not console.is_terminal:  # a file is as wide as need be
        console.width = max(console.width, Console(width=1000).measure(shown).maximum)
    console.print(shown)


def percent(shares: list[float]) -> str:
    """Shares as per cent: their mean, and its standard error s / sqrt(n) where there are several."""
    if not shares:
        return "not run"
    mean = f"{100 * statistics.fmean(shares):.1f}"
    if len(shares) == 1:
        return f"{mean} %"
    return f"{mean} ± {100 * statistics.stdev(shares) / len(shares) ** 0.5:.1f} %"


if __name__ == "__main__":
    main(sys.argv[1:])
