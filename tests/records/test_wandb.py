"""W&B mirrors a run; what goes wrong there costs the run one line of text."""

from __future__ import annotations

import importlib.machinery
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from offline_run import whole
from recorded_run import Toy, metrics

from robust_train.nouns import Place
from robust_train.records import Records, jsonl
from robust_train.records import wandb as ours
from robust_train.settings.tracking import Tracking
from robust_train.tools.wandb_replay import main, replay

NO_KEY = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL")


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch, tmp_path):
    for name in NO_KEY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def run_of(folder: Path, **said: Any) -> Toy:
    return Toy(str(folder), updates=6, records=Tracking(progress="off", every=2, **said))


def work(run: Toy) -> None:
    """Some updates with everything that is recorded of them."""
    with Records(run, Place()) as records:
        for update in range(run.updates):
            records.add(update, metrics(update))
        records.add(run.updates - 1, {"accuracy/pgd20": 0.25})
        records.picture(run.updates - 1, "attack", torch.rand(3, 8, 8))
        records.summary({"accuracy/clean": 0.75, "images": 360})


@pytest.fixture
def fake(monkeypatch) -> Iterator[SimpleNamespace]:
    """A W&B in memory; `fails` names the call that raises, `hangs` the one that never returns."""
    seen = SimpleNamespace(
        init=[], rows=[], summary={}, finished=[], metrics=[], fails=None, hangs=None, gate=threading.Event()
    )

    def call(name: str, note: Any) -> Any:
        if seen.fails == name:
            raise RuntimeError(f"{name} is\nbroken")
        if seen.hangs == name:
            seen.gate.wait(30)
        return note()

    class Run:
        summary = SimpleNamespace(update=lambda values: call("summary", lambda: seen.summary.update(values)))

        def define_metric(self, *given: Any, **named: Any) -> None:
            seen.metrics.append((given, named))

        def log(self, row: dict[str, Any]) -> None:
            call("log", lambda: seen.rows.append(row))

        def finish(self, exit_code: int) -> None:
            call("finish", lambda: seen.finished.append(exit_code))

    def init(**given: Any) -> Run:
        return call("init", lambda: (seen.init.append(given), Run())[1])

    module = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.__dict__.update(init=init, Settings=FakeSettings, Image=lambda path: ("image", path))
    monkeypatch.setitem(sys.modules, "wandb", module)
    yield seen
    seen.gate.set()


class FakeSettings(SimpleNamespace):
    """Settings of a version that knows two of ours only."""

    model_fields = ("silent", "init_timeout")


def test_everything_is_mirrored_in_order_with_update_as_the_axis(tmp_path, fake):
    work(run_of(tmp_path / "run", project="p", entity="e", tags=("t",)))
    given = fake.init[0]
    assert (given["project"], given["entity"], given["tags"], given["name"]) == ("p", "e", ["t"], "toy")
    assert (given["mode"], given["resume"], given["dir"]) == ("offline", None, str(tmp_path / "run"))
    assert given["config"] == {"name": "toy", "updates": 6, "objective": {"use": "madry", "attack": {"steps": 7}}}
    assert vars(given["settings"]) == {"silent": True, "init_timeout": ours.INIT_SECONDS}
    assert fake.metrics == [(("update",), {}), (("*",), {"step_metric": "update"})]
    rows = [row for row in fake.rows if "time/run" not in row and "pictures/attack" not in row]
    assert rows == jsonl.read(tmp_path / "run" / "metrics.jsonl")
    timed = [row for row in fake.rows if "time/run" in row]
    assert timed == [row for row in jsonl.read(tmp_path / "run" / "timing.jsonl") if "update" in row]
    assert [row["update"] for row in timed] == [0, 2, 4]
    picture = str(tmp_path / "run" / "pictures" / "attack-5.png")
    assert {"update": 5, "pictures/attack": ("image", picture)} in fake.rows
    assert fake.summary == {"accuracy/clean": 0.75, "images": 360}
    assert fake.finished == [0]


def test_a_run_that_fails_is_told_so(tmp_path, fake):
    with pytest.raises(ZeroDivisionError), Records(run_of(tmp_path), Place()):
        _ = 1 / 0
    assert fake.finished == [1]


def test_one_job_has_one_id_and_another_folder_another(tmp_path, fake):
    for name in ("a", "a", "b"):
        work(run_of(tmp_path / name))
    first, second, other = (given["id"] for given in fake.init)
    assert first == second == (tmp_path / "a" / "wandb-id").read_text().strip()
    assert len(first) == 16
    assert other != first


@pytest.mark.parametrize("broken", ["init", "log", "summary", "finish"])
def test_a_broken_wandb_costs_one_line(tmp_path, fake, capsys, broken):
    fake.fails = broken
    work(run_of(tmp_path))
    assert len(jsonl.read(tmp_path / "metrics.jsonl")) == 7
    told = [text for text in capsys.readouterr().err.splitlines() if "broken" in text]
    assert len(told) == 1
    assert told[0].startswith(f"W&B: RuntimeError: {broken} is broken. The run goes on without it")


@pytest.mark.parametrize("hanging", ["init", "log", "finish"])
def test_a_hanging_wandb_delays_the_end_only_and_that_by_a_limit(tmp_path, fake, capsys, monkeypatch, hanging):
    monkeypatch.setattr(ours, "INIT_SECONDS", 0.1)
    monkeypatch.setattr(ours, "FINISH_SECONDS", 0.1)
    fake.hangs = hanging
    began = time.monotonic()
    work(run_of(tmp_path))
    assert time.monotonic() - began < 5
    assert len(jsonl.read(tmp_path / "metrics.jsonl")) == 7
    assert "no answer for 0 s" in capsys.readouterr().err


def test_calls_do_not_pile_up_without_end_behind_a_hanging_wandb(tmp_path, fake, capsys, monkeypatch):
    monkeypatch.setattr(ours, "WAITING", 3)
    monkeypatch.setattr(ours, "INIT_SECONDS", 0.1)
    monkeypatch.setattr(ours, "FINISH_SECONDS", 0.1)
    fake.hangs = "log"
    work(run_of(tmp_path))
    said = capsys.readouterr().err
    assert "3 calls wait for an answer" in said
    assert said.count("The run goes on without it") == 1


def test_without_a_key_auto_is_offline_and_with_one_online(tmp_path, monkeypatch, fake):
    assert ours.chosen("auto")[0] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert ours.chosen("auto")[0] == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert ours.chosen("auto")[0] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert ours.chosen("auto")[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert ours.chosen("auto")[0] == "off"
    assert [ours.chosen(wish)[0] for wish in ("off", "offline", "online")] == ["off", "offline", "online"]


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_DISABLED": "true"}, "off"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "off"),
        ({"WANDB_DISABLED": "false"}, "online"),
        ({"WANDB_DISABLED": ""}, "online"),
        ({"WANDB_MODE": "Disabled"}, "off"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": " offline "}, "offline"),
        ({"WANDB_MODE": ""}, "online"),
        ({"WANDB_MODE": "ofline"}, "offline"),  # a slip sends nothing away
    ],
)
def test_the_environment_decides_where_the_run_leaves_it_to_it(monkeypatch, fake, variables, mode):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, why = ours.chosen("auto")
    assert found == mode
    assert mode == "online" or any(name in why for name in variables)
    assert ours.chosen("online")[0] == "online"


def test_online_the_same_id_goes_on(tmp_path, monkeypatch, fake):
    work(run_of(tmp_path, wandb="online"))
    assert (fake.init[0]["mode"], fake.init[0]["resume"]) == ("online", "allow")


def test_where_wandb_is_not_installed_a_note_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    work(run_of(tmp_path))
    assert "W&B: off (wandb is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "wandb-id").exists()


def test_a_replay_of_a_folder_without_a_run_names_what_is_missing(tmp_path, fake, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    assert "holds no run.yaml" in capsys.readouterr().err


def test_a_replay_is_one_run_in_the_order_of_updates_with_the_last_times(tmp_path, fake):
    run = run_of(tmp_path)
    work(run)
    work(run)  # again: timing.jsonl tells of both starts
    (tmp_path / "run.yaml").write_text(run.dump())
    fake.rows.clear()
    new = replay(tmp_path, project="other")
    given = fake.init[-1]
    assert (given["id"], given["project"], given["tags"]) == (new, "other", ["replay"])
    assert new.startswith((tmp_path / "wandb-id").read_text().strip())
    assert [row["update"] for row in fake.rows] == sorted(row["update"] for row in fake.rows)
    assert len([row for row in fake.rows if "time/run" in row]) == 3
    assert [row for row in fake.rows if "loss" in row or "accuracy/pgd20" in row] == jsonl.read(
        tmp_path / "metrics.jsonl"
    )
    assert fake.summary == {"accuracy/clean": 0.75, "images": 360}


@pytest.mark.slow
def test_an_offline_run_holds_config_history_summary_and_picture(tmp_path):
    pytest.importorskip("wandb")
    run = run_of(tmp_path)
    work(run)
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    told = whole(written)
    assert told.config == {"name": "toy", "updates": 6, "objective": {"use": "madry", "attack": {"steps": 7}}}
    assert told.identity == (tmp_path / "wandb-id").read_text().strip()
    assert told.metrics() == jsonl.read(tmp_path / "metrics.jsonl")
    assert [row["update"] for row in told.history if "time/run" in row] == [0, 2, 4]
    assert told.summary["accuracy/clean"] == 0.75
    assert list(written.parent.glob("files/media/images/pictures/attack_*.png"))
    assert told.exit_code == 0

    (tmp_path / "run.yaml").write_text(run.dump())
    new = replay(tmp_path)
    (replayed,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{new}.wandb")
    again = whole(replayed)
    assert again.config == told.config
    assert again.metrics() == told.metrics()
    assert again.summary["images"] == 360
