"""Members, their ensembles, students taught by these, and all of them judged under corruptions: one study, one command.

The stages are runs and files like any others, and what is done is not done again:

members     FOLDER/seedS/NAME, the runs of a sweep (launch.sweep)
ensembles   FOLDER/seedS/NAME.yaml, wherever a checkpoint may be named
students    FOLDER/seedS/NAME, runs of the objective `distill`
judging     FOLDER/judged: every network on the same corrupted images; then FOLDER/study.json, study.png, a table
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robust_train.evaluate.study import Roles, Study
from robust_train.launch.address import address_of
from robust_train.launch.packing import sweep
from robust_train.launch.sweep import Member, Sweep, checked, failing, listed, sheet
from robust_train.read import overrides
from robust_train.read.errors import ConfigError, main_guard, nearest
from robust_train.read.parse import Tree, load_tree, parse
from robust_train.read.paths import FilePath, run_file

if TYPE_CHECKING:
    from robust_train.evaluate.corruption_work import Course
    from robust_train.evaluate.panel import Entry
    from robust_train.nouns import Dataset
    from robust_train.run import Run

STAGES = ("members", "students", "judging")
USE = """settings are written key=value: judge.images=500   students.student.settings.objective.alpha=0.5
those of the sweep begin with sweep: sweep.seeds=[0]   sweep.folder=runs/other   sweep.settings.updates=100
The same command again goes on: stages, runs and images that are done are not done anew.
"""


@dataclass(frozen=True)
class Together:
    """An ensemble of a study: members by their names in the sweep, in each seed."""

    members: tuple[str, ...]
    mean: Literal["logits", "probabilities"] = "logits"  # of what
    weights: tuple[float, ...] | None = None  # a share each, together 1; null: equal ones


@dataclass(frozen=True)
class Pupil:
    """A student of a study: the sweep's run with another objective."""

    teachers: str  # an ensemble's name, or a member's
    index: int = 0  # its seed is 100 s + index: that of the member with this index, so that only the teaching differs
    settings: dict[str, Any] = field(default_factory=dict)  # changes to the run: {network.edits: []}
    temperature: float = 4.0  # of the objective: how soft the teachers' answers are
    alpha: float = 0.9  # of the objective: share of what teachers say
    draws: int = 1  # of the objective: forwards of each teacher an image


@dataclass(frozen=True)
class Judging:
    """What the networks of a study are judged on: validation images of their run, clean and corrupted."""

    corruptions: str = "all"  # all: the 15; a category; or names, such as fog,snow
    images: int | None = None  # the first so many; null: all
    chunk: int = 250  # consecutive images judged together
    seed: int = 0  # of the corruptions and the networks' noise
    frost: FilePath | None = None  # the folder of frost's textures
    devices: int = 1  # processes that judge, one a device

    def __post_init__(self) -> None:
        for name in ("images", "chunk", "devices"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Distillation:
    """A study. `python -m launch.distill STUDY.yaml` does what of it is not done yet."""

    sweep: Sweep  # the members: a sweep's fields, or its YAML file
    ensembles: dict[str, Together]  # by name
    students: dict[str, Pupil]  # by name
    judge: Judging  # on what all are judged
    roles: Roles  # which network is what: base, members, ensemble, controls, student, ...

    def __post_init__(self) -> None:
        members = [name for name, _, _ in self.sweep.indices()]
        known = [*members, *self.ensembles, *self.students]
        for name in known:
            if known.count(name) > 1:
                raise ValueError(f"{name} names two networks: members, ensembles and students have names of their own")
        for title, one in self.ensembles.items():
            _known(f"ensembles.{title}.members", one.members, members)
        for title, pupil in self.students.items():
            _known(f"students.{title}.teachers", [pupil.teachers], [*members, *self.ensembles])
        _known("roles", self.roles.names, known)

    @classmethod
    def load(cls, path: str | Path, changes: Iterable[str] = ()) -> Distillation:
        """The study of a YAML file, with key=value changes. Raises ConfigError."""
        path = run_file(path)
        own = [change for change in changes if not change.startswith("sweep.")]
        tree = overrides.apply(load_tree(path), own)
        if not isinstance(tree.get("sweep"), str):
            raise ConfigError(f"{path}: sweep must name the YAML file of the members' sweep, relative to this file")
        of_sweep = [change.removeprefix("sweep.") for change in changes if change.startswith("sweep.")]
        members = Sweep.load(path.parent / tree["sweep"], of_sweep)
        return parse(cls, {**tree, "sweep": members}, "study", str(path))

    @property
    def folder(self) -> Path:
        """Where all of it goes."""
        return Path(self.sweep.folder)

    def place(self, seed: int, name: str) -> Path:
        """The folder of a run, or the file of an ensemble."""
        return self.folder / f"seed{seed}" / (f"{name}.yaml" if name in self.ensembles else name)

    def taught(self) -> dict[str, Run]:
        """The students' runs by name, seedS/NAME."""
        found: dict[str, Run] = {}
        for seed in self.sweep.seeds:
            for title, pupil in self.students.items():
                said = {"teachers": [str(self.place(seed, pupil.teachers))], "temperature": pupil.temperature}
                objective: Tree = {"use": "distill", **said, "alpha": pupil.alpha, "draws": pupil.draws}
                alone = {title: Member({**pupil.settings, "objective": objective}, index=(pupil.index,))}
                found |= replace(self.sweep, members=alone, seeds=(seed,)).runs()
        return found

    def cost(self, pupil: Pupil) -> float:
        """What an update of a student costs, in forward passes; known before its teachers' file is there."""
        teachers = self.ensembles[pupil.teachers].members if pupil.teachers in self.ensembles else (pupil.teachers,)
        return pupil.draws * len(teachers) + 3

    def entries(self) -> tuple[Entry, ...]:
        """All that is judged, each under seedS/NAME."""
        from robust_train.evaluate.panel import Entry

        found = []
        for seed in self.sweep.seeds:
            alone = [name for name, _, _ in self.sweep.indices()] + list(self.students)
            found += [Entry(f"seed{seed}/{name}", (str(self.place(seed, name)),)) for name in alone]
            for name, one in self.ensembles.items():
                members = tuple(str(self.place(seed, member)) for member in one.members)
                found.append(Entry(f"seed{seed}/{name}", members, one.mean, one.weights))
        return tuple(found)


def _known(where: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: {name!r} is no network of the study{nearest(name, known)}")


@main_guard()
def main(argv: list[str]) -> None:
    until = {"choices": STAGES, "default": STAGES[-1], "help": "the last stage to do (%(default)s)"}
    example = "configs/debug/v1-distill.yaml"
    arguments = sheet("python -m launch.distill", __doc__, USE, "study", Distillation, example, argv, until=until)
    if arguments is None:
        return
    found = Distillation.load(arguments.file, arguments.settings)
    if arguments.dry_run:
        print("\n".join(told(found)))
    elif arguments.check:
        print("\n".join(foreseen(found)))
    else:
        with failing():
            do(found, arguments.until)


def told(found: Distillation) -> Iterator[str]:
    """What a study consists of, in words."""
    yield from listed(found.sweep)
    for seed in found.sweep.seeds:
        for name, one in found.ensembles.items():
            yield f"seed{seed}/{name}  {found.place(seed, name)}  the mean of {', '.join(one.members)}"
    for name, run in found.taught().items():
        yield f"{name}  {run.folder}  seed {run.seed}, taught by {', '.join(run.objective.teachers)}"  # type: ignore[attr-defined]
    yield f"judged: {len(found.entries())} networks, on corruptions={found.judge.corruptions}"


def foreseen(found: Distillation) -> list[str]:
    """What the runs will take, measured on a few updates of the first member."""
    lines = checked(found.sweep.runs())
    for name, pupil in found.students.items():
        count = len(found.sweep.seeds)
        lines.append(f"and {count} x {name}, {found.cost(pupil):g} forward passes an update where a member has 3")
    return lines


def do(found: Distillation, until: str) -> Study | None:
    """Every stage that is not done, in order."""
    from robust_train.launch.cluster import enter_home

    members, taught = found.sweep.runs(), found.taught()  # mistakes are found before the first run
    address = found.sweep.cluster.address or found.sweep.shared().cluster.address
    course = course_of(found.judge, next(iter(members.values())).data)
    enter_home()
    print(f"members: {len(members)} runs below {found.folder}")
    sweep(members, found.sweep.retries, address)
    join(found)
    if until == "members":
        return None
    print(f"students: {len(taught)} runs")
    sweep(taught, found.sweep.retries, address)
    if until == "students":
        return None
    return judge(found, course, next(iter(members.values())), address)


def join(found: Distillation) -> None:
    """Write the ensembles' files."""
    from robust_train import disk
    from robust_train.trained import Members

    for seed in found.sweep.seeds:
        for name, one in found.ensembles.items():
            path = found.place(seed, name)
            text = Members(one.members, one.mean, one.weights).dump()
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                disk.write_text(path, text)


def course_of(asked: Judging, data: Dataset) -> Course:
    """What is done to the images. Raises ConfigError or DataError for what could not be made: before the first run."""
    from robust_train.data.corruptions import named
    from robust_train.evaluate.corruption_work import Course

    frost = None if asked.frost is None else str(Path(asked.frost).expanduser().absolute())
    course = Course(named(asked.corruptions), asked.chunk, asked.images, frost)
    course.check(data.shape[-1], "judge.frost=FOLDER")
    return course


def judge(found: Distillation, course: Course, run: Run, address: str | None) -> Study:
    """Judge what is not judged yet; table, picture and study.json."""
    import torch

    from robust_train import command, disk
    from robust_train.arithmetic import full_float32
    from robust_train.evaluate import panel
    from robust_train.evaluate.report import circumstances
    from robust_train.launch.deal import dealt
    from robust_train.records.corruption_pictures import study as drawn
    from robust_train.records.judging import telling
    from robust_train.records.tables import show_study

    began = time.monotonic()
    entries, asked = found.entries(), found.judge
    print(f"judging: {len(entries)} networks under {len(course.corruptions)} corruptions")
    full_float32()
    if not run.cluster.gpu:
        torch.set_num_threads(max(1, int(run.cluster.cpus)))
    device = command.device(run) if run.cluster.gpu else "cpu"

    def deal(sitting: Any) -> Any:
        return dealt(sitting, asked.devices, run.cluster.gpu, address_of(address))

    with telling() as tell:
        each = panel.judged_panel(
            panel.Panel(entries),
            run.data,
            course,
            found.folder / "judged",
            asked.seed,
            device,
            deal if asked.devices > 1 else None,
            tell,
        )
    results = {
        (int(re.sub(r"\D", "", name.partition("/")[0])), name.partition("/")[2]): one for name, one in each.items()
    }
    study = Study(results, found.roles)
    title = found.folder.name
    show_study(title, study)
    picture = found.folder / "study.png"
    picture.write_bytes(drawn(study, title))
    tree: Mapping[str, Any] = {
        "command": shlex.join(["python", "-m", "launch.distill", *sys.argv[1:]]),
        "judge": vars(asked),
        **study.tree(),
        "robustness": {name: one.tree() for name, one in each.items()},
        **circumstances(device, began),
    }
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    disk.write_text(found.folder / "study.json", text + "\n")
    print(f"picture: {picture}\nreport: {found.folder / 'study.json'}")
    return study


if __name__ == "__main__":
    main(sys.argv[1:])
