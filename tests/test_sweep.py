"""Many runs from one file: their names, their seeds, their order, and how many are at work at once."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from robust_train.launch import packing, submit
from robust_train.launch import sweep as sweeping
from robust_train.launch.board import Board, updates
from robust_train.launch.packing import Trouble, Unfinished, fits, sweep
from robust_train.launch.sweep import Member, Sweep, listed, main, percent
from robust_train.read.errors import ConfigError, RunError
from robust_train.read.help import undocumented
from robust_train.run import Run
from robust_train.settings.cluster import Cluster

CONFIGS = Path(__file__).parent.parent / "configs"
STUDY = CONFIGS / "v1" / "cifar-sweep.yaml"
MEMBER = CONFIGS / "v1" / "cifar-member.yaml"

RUN = """
data: {use: digits}
network: {model: {use: small-cnn, widths: [4, 8], strides: [2, 2]}, group: 16}
objective: {use: plain}
updates: 8
batch: 32
records: {wandb: "off"}
"""
SWEEP = """
run: run.yaml
folder: runs/study
seeds: [0, 3]
settings: {optimiser.lr: 0.01}
members:
  a: {}
  b: {settings: {updates: 4}, copies: 2}
  c: {settings: [updates=6, "optimiser.lr={use: cosine, peak: 0.2}"]}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of four runs a seed in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


# -- what a sweep says ------------------------------------------------------------------------------


def test_runs_are_all_members_of_a_seed_in_their_order_then_those_of_the_next(study: Path) -> None:
    runs = Sweep.load(study).runs()
    names = ["a", "b-0", "b-1", "c"]
    assert list(runs) == [f"seed{seed}/{name}" for seed in (0, 3) for name in names]
    assert [run.seed for run in runs.values()] == [0, 1, 2, 3, 300, 301, 302, 303]
    for place, run in runs.items():
        assert (run.name, run.folder) == (place.split("/")[1], f"runs/study/{place}")


def test_a_member_s_settings_lie_over_those_of_all_and_those_over_the_shared_run(study: Path) -> None:
    runs = Sweep.load(study, ["settings.batch=64", "settings.optimiser.lr=0.05"]).runs()
    assert {run.batch for run in runs.values()} == {64}
    assert runs["seed0/a"].optimiser.lr == 0.05
    assert [run.updates for run in runs.values()] == [8, 4, 4, 6] * 2
    assert runs["seed3/c"].optimiser.lr.peak == 0.2


def test_the_runs_of_the_study_are_those_that_its_commands_begin() -> None:
    """Seeds 100 s + i: a standard network 0, the variants 1 to 3, plain ones 4 to 7, other standard ones 8 to 10."""
    runs = Sweep.load(STUDY).runs()
    numbers = {"standard-0": 0, "low-sf": 1, "high-sf": 2, "no-noise": 3}
    numbers |= {f"plain-{copy}": 4 + copy for copy in range(4)} | {f"standard-{copy}": 7 + copy for copy in (1, 2, 3)}
    said = {
        "low-sf": ["network.edits.0.sf_min=0.5", "network.edits.0.sf_max=2.0"],
        "high-sf": ["network.edits.0.sf_min=5.6", "network.edits.0.sf_max=11.2"],
        "no-noise": ["network.edits.0.noise=null"],
        "plain": ["network.edits=[]"],
    }
    assert len(runs) == 33
    for seed in (0, 1, 2):
        for name, number in numbers.items():
            place = f"seed{seed}/{name}"
            given = [f"name={name}", f"folder=runs/v1-cifar10/{place}", f"seed={100 * seed + number}"]
            own = said.get(name, said.get(name.rsplit("-", 1)[0], []))
            assert runs[place] == Run.load(MEMBER, [*given, *own]), place


def test_a_sweep_survives_being_written_and_every_field_of_it_is_documented(study: Path) -> None:
    from robust_train.read.parse import dump, load_tree, parse

    found = Sweep.load(study)
    assert parse(Sweep, load_tree(dump(found))) == found
    assert undocumented(Sweep) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["members.b.settings={updats: 4}"], r"members\.b-0\.updats: no such field of Run; did you mean 'updates'"),
        (["settings.optimser.lr=1"], r"run\.optimser: no such field of Run; did you mean 'optimiser'"),
        (["updates=3"], r"a sweep has no field updates.* settings\.updates=3"),
        (["members.a.settings={seed: 3}"], "members.a: seed=3: the sweep itself gives each run its seed"),
        (["members.a.settings={updates: }"], r"members\.a\.updates: expected int, got null"),
        (["members.a.copies=0"], "copies=0 must be at least 1"),
        (["members.b.index=[1]"], "must name one number for each of 2 copies"),
        (["members.a.index=[3]"], "two runs have the index 3"),
        (["members.a.index=[100]"], "must lie from 0 to 99"),
        (["members.b-1={}"], "two runs have the name b-1"),
        (["members.a.copies=98"], "101 runs a seed"),
        (["members={'../x': {}}"], r"members.../x cannot be a folder's name"),
        (["seeds=[1, 1]"], "each once"),
        (["seeds=[]"], "numbers from 0 on"),
        (["retries=-1"], "retries=-1 must not be negative"),
        (["run=absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_a_bad_sweep_is_refused_with_its_place_and_a_remedy(study: Path, changes: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sweep.load(study, changes).runs()


def test_a_sweep_without_members_is_refused(study: Path) -> None:
    study.write_text("run: run.yaml\nfolder: x\nmembers: {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="members names none: give at least one"):
        Sweep.load(study)


def test_a_dry_run_names_every_run_and_what_is_its_own(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(study), "--dry-run", "seeds=[3]"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "seed3/a  runs/study/seed3/a  seed 300"
    assert lines[2:4] == ["seed3/b-0  runs/study/seed3/b-0  seed 301", "    updates: was 8, is now 4"]
    assert not (study.parent / "runs").exists()
    assert list(listed(Sweep.load(study, ["seeds=[3]"]))) == lines


def test_the_forecast_of_a_sweep_counts_the_updates_that_are_left(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of 8, 4, 4 and 6 updates; one of 4 is done: 18 of the first one's 8."""
    done(Sweep.load(study).runs()["seed0/b-0"])
    main([str(study), "--check", "seeds=[0]", "settings.cluster.rate=1"])
    printed = capsys.readouterr().out
    assert "seed0/a, the first of 4 runs:" in printed
    assert "forecast of all: 3 runs to do (1 done before)" in printed
    hours = [float(line.split(" device-hours")[0].split()[-1]) for line in printed.splitlines() if "-hours" in line]
    assert hours[1] / hours[0] == pytest.approx(18 / 8, rel=0.1)  # printed to two and three digits


def test_a_sweep_is_submitted_as_the_same_command_and_its_mistakes_are_found_before(study: Path) -> None:
    words = argparse.Namespace(run=str(STUDY), settings=["seeds=[1]"], check=False, sweep=True)
    assert submit.whole(words).startswith("11 runs of ")
    assert submit.entrypoint(words, "launch.sweep") == (
        "python -m robust_train.launch.sweep configs/v1/cifar-sweep.yaml 'seeds=[1]'"
    )
    words.settings = ["seeds=[1, 1]"]
    with pytest.raises(ConfigError, match="each once"):
        submit.whole(words)


# -- how many at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "wanted", "fit"),
    [
        ([{"CPU": 2.0}], [Cluster(), Cluster()], True),
        ([{"CPU": 2.0}], [Cluster(), Cluster(), Cluster()], False),
        ([{"CPU": 2.0}], [Cluster(cpus=0.5), Cluster(devices=3, cpus=0.5)], True),
        ([{"CPU": 1.0}], [Cluster(cpus=0.1)] * 10, True),  # 0.1 ten times is a little less than 1
        ([{"CPU": 2.0}, {"CPU": 2.0}], [Cluster(cpus=3)], False),  # enough in all, on no node
        ([{"CPU": 4.0}, {"CPU": 3.0}], [Cluster(cpus=2), Cluster(cpus=2), Cluster(cpus=3)], True),  # 2 + 2 and 3
        ([{"CPU": 3.0}, {"CPU": 4.0}], [Cluster(cpus=2), Cluster(cpus=2), Cluster(cpus=3)], True),
        ([{"CPU": 8.0, "GPU": 2.0}], [Cluster(devices=2, gpu=True), Cluster(gpu=True)], False),
        ([{"CPU": 8.0, "GPU": 2.0}], [Cluster(devices=2, gpu=True), Cluster()], True),
        ([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}], [Cluster(cpus=1), Cluster(gpu=True, cpus=2)], True),
        ([{"CPU": 0.0}], [Cluster(cpus=0)] * 5, True),
        ([], [], True),
        ([], [Cluster()], False),
    ],
)
def test_runs_find_room_together_or_do_not(there: Any, wanted: Any, fit: bool) -> None:
    assert fits(there, wanted) is fit


def done(run: Run) -> None:
    """As if the run had been done."""
    run.path.mkdir(parents=True, exist_ok=True)
    summary = {"accuracy/clean": 0.5 + run.seed / 1000, "updates": run.updates, "images": 10, "seconds": 2.0}
    (run.path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


class Played:
    """A cluster of two CPUs in which every run ends as it is told to: `ends[name]`, one a try; None: it is done."""

    def __init__(self, ends: dict[str, list[Trouble | None]]) -> None:
        self.ends = ends
        self.tasks: list[Run] = []  # a task is its number here
        self.running: set[int] = set()
        self.most = 0.0  # CPUs in use at once

    @property
    def order(self) -> list[str]:
        return [run.name for run in self.tasks]

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 2.0}]

    def start(self, run: Run, home: Path) -> int:
        self.tasks.append(run)
        self.running.add(len(self.tasks) - 1)
        clusters = [self.tasks[task].cluster for task in self.running]
        self.most = max(self.most, sum(cluster.devices * cluster.cpus for cluster in clusters))
        return len(self.tasks) - 1

    def ended(self, tasks: list[int]) -> list[int]:
        return tasks[:1]

    def outcome(self, task: int) -> Trouble | None:
        self.running.remove(task)
        run = self.tasks[task]
        trouble = self.ends[run.name].pop(0) if self.ends.get(run.name) else None
        if trouble is None:
            done(run)
        return trouble


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Any:
    def of(**ends: list[Trouble | None]) -> Played:
        played = Played({name.replace("_", "-"): list(tries) for name, tries in ends.items()})
        for name in ("nodes", "start", "ended", "outcome"):
            monkeypatch.setattr(packing, name, getattr(played, name))
        monkeypatch.setattr(packing, "joined", lambda address: nullcontext())
        return played

    return of


LOST, REFUSED = Trouble("its process was killed", final=False), Trouble("no such shard", final=True)


def test_no_more_runs_are_at_work_than_fit_and_each_is_done_once(study: Path, play: Any) -> None:
    played = play()
    runs = Sweep.load(study).runs()
    summaries = sweep(runs)
    assert list(summaries) == list(runs)
    assert summaries["seed3/b-1"]["accuracy/clean"] == 0.5 + 0.302
    assert played.order == ["a", "b-0", "b-1", "c"] * 2
    assert played.most == 2


def test_a_run_of_two_devices_waits_for_both_and_is_not_overtaken(study: Path, play: Any) -> None:
    played = play()
    runs = Sweep.load(study, ["seeds=[0]", "members.b.settings.cluster.devices=2"]).runs()
    sweep(runs)
    assert played.order == ["a", "b-0", "b-1", "c"]
    assert played.most == 2


def test_a_run_that_is_lost_is_started_again_so_often_and_its_neighbours_do_not_notice(study: Path, play: Any) -> None:
    runs = Sweep.load(study, ["seeds=[0]"]).runs()
    played = play(a=[LOST, LOST], c=[LOST, LOST, LOST])
    with pytest.raises(Unfinished, match="1 of 4 runs failed:\n  seed0/c: its process was killed") as error:
        sweep(runs, retries=2)
    assert isinstance(error.value, RunError)
    assert list(error.value.done) == ["seed0/a", "seed0/b-0", "seed0/b-1"]
    assert error.value.failed == {"seed0/c": LOST.reason}
    assert played.order == ["a", "b-0", "a", "b-1", "a", "c", "c", "c"]  # a again before those that wait


def test_what_no_other_try_can_cure_is_not_tried_again(study: Path, play: Any) -> None:
    played = play(b_0=[REFUSED])
    with pytest.raises(Unfinished, match="no such shard"):
        sweep(Sweep.load(study, ["seeds=[0]"]).runs(), retries=5)
    assert played.order.count("b-0") == 1


def test_a_sweep_that_is_done_starts_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Sweep.load(study).runs()
    for run in runs.values():
        done(run)
    monkeypatch.setattr(packing, "joined", None)  # a call of it would raise
    assert list(sweep(runs)) == list(runs)


def test_a_folder_of_another_run_and_a_cluster_too_small_are_refused_before_anything_starts(
    study: Path, play: Any
) -> None:
    played = play()
    runs = Sweep.load(study, ["members.c.settings=[cluster.devices=3, batch=96]"]).runs()
    with pytest.raises(ConfigError, match="seed0/c: the cluster has 2 CPUs"):
        sweep(runs)
    first = runs["seed0/a"]
    first.path.mkdir(parents=True)
    (first.path / "run.yaml").write_text(first.dump().replace("updates: 8", "updates: 9"), encoding="utf-8")
    (first.path / "metrics.jsonl").write_text('{"update": 0}\n', encoding="utf-8")  # it has begun
    with pytest.raises(ConfigError, match=r"seed0/a holds another run:\n  updates: was 9, is now 8"):
        sweep(runs)
    with pytest.raises(ConfigError, match="x and y are both to be written to"):
        sweep({"x": runs["seed0/c"], "y": runs["seed0/c"]})
    assert played.order == []


# -- what is seen -----------------------------------------------------------------------------------


def test_the_table_has_means_over_seeds_and_says_who_failed_and_the_exit_code_is_1(
    study: Path, play: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    play(c=[REFUSED, REFUSED])
    with pytest.raises(SystemExit) as error:
        main([str(study)])
    assert error.value.code == sweeping.FAILED == 1
    out, err = capsys.readouterr()
    rows = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert "65.0 ± 15.0 %" in rows["a"]  # 50 and 80 %: s / sqrt(2) = 30 / sqrt(2) / sqrt(2)
    assert "not run" in rows["c"]
    assert "seed0/c: no such shard" in rows["c"]
    assert "2 of 8 runs failed:" in err
    kept = json.loads((study.parent / "runs/study/sweep.json").read_text())
    assert set(kept["failed"]) == {"seed0/c", "seed3/c"}
    assert kept["runs"]["seed3/a"]["accuracy/clean"] == 0.8
    assert "Traceback" not in err


def test_a_long_message_does_not_break_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Sweep.load(study, ["seeds=[0]"])
    sweeping.table(found, {}, {"seed0/a": "no such shard: " + "x " * 200})
    lines = [line for line in capsys.readouterr().out.splitlines() if "no such shard" in line]
    assert len(lines) == 1
    assert lines[0].endswith("[...] │")


def test_the_table_says_of_how_many_seeds_a_probe_saw_a_collapse(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Sweep.load(study)
    seeds = {f"seed{seed}": {"accuracy/clean": 0.5, "probe/collapses": 2 * (seed == 3)} for seed in found.seeds}
    sweeping.table(found, {f"{seed}/a": summary for seed, summary in seeds.items()}, {})
    told = capsys.readouterr().out
    assert "collapsed" in told
    assert f"1 of {len(found.seeds)}" in told
    assert "not watched" in told


def test_a_mean_has_the_standard_error_of_its_seeds() -> None:
    assert percent([]) == "not run"
    assert percent([0.5]) == "50.0 %"
    assert percent([0.1, 0.2, 0.6]) == f"30.0 ± {100 * (0.07 / 3) ** 0.5:.1f} %"  # variance (0.04 + 0.01 + 0.09) / 2


def test_the_board_says_starts_ends_and_how_long_all_still_takes(study: Path) -> None:
    """Two runs of 8 updates are left; one is done after 80 s: 80 s more."""
    runs = Sweep.load(study, ["members.a.copies=3"]).runs()
    runs = {f"seed0/a-{copy}": runs[f"seed0/a-{copy}"] for copy in range(3)}
    now, shown = [0.0], StringIO()
    with Board(runs, {"seed0/a-0": {}}, shown, lambda: now[0]) as board:
        board.started("seed0/a-1")
        now[0] = 80.0
        board.ended("seed0/a-1", {"accuracy/clean": 0.625, "updates": 8})
        board.started("seed0/a-2")
        board.failed("seed0/a-2", "lost", 1, 2, again=True)
        board.started("seed0/a-2")
        board.failed("seed0/a-2", "lost", 2, 2, again=False)
        assert board.left() == 0
    assert shown.getvalue().splitlines() == [
        "seed0/a-0: done before",
        "seed0/a-1: started",
        "seed0/a-1: done, clean 62.5 %, 1 min 20 s; 2 of 3 done, about 1 min 20 s left",
        "seed0/a-2: started",
        "seed0/a-2: failed at update 0 (try 1 of 2): lost; it is started again",
        "seed0/a-2: started",
        "seed0/a-2: failed at update 0 (try 2 of 2): lost; it is given up",
        "2 of 3 done, 1 failed",
    ]


def test_a_run_s_updates_are_those_of_its_last_whole_line(study: Path) -> None:
    run = Sweep.load(study).runs()["seed0/a"]
    assert updates(run) == 0
    run.path.mkdir(parents=True)
    written = run.path / "metrics.jsonl"
    for text, count in (("", 0), ('{"update": 0}\n', 1), ('{"update": 0}\n{"update": 1}\n{"upd', 2)):
        written.write_text(text, encoding="utf-8")
        assert updates(run) == count
    written.write_text('{"update": 7}\n{"update": 8}\n', encoding="utf-8")  # the evaluation's line
    assert updates(run) == 8


def test_names_of_copies_are_numbered() -> None:
    assert Member().names("a") == ["a"]
    assert Member(copies=2).names("a") == ["a-0", "a-1"]
