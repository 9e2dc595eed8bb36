"""An evaluation at Weights & Biases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judged_network import NAMES, exhibits, report, tree
from offline_run import whole

from robust_train.records import wandb as ours
from robust_train.records.exhibits import draw
from robust_train.records.mirror import lines, mirror, summary
from robust_train.records.page import page
from robust_train.settings.tracking import Tracking


def test_figures_are_named_by_threat_model_and_attack():
    found = summary(tree())
    figures = {name: value for name, value in found.items() if not name.endswith(("/low", "/high"))}
    assert figures == {
        "eval/images": 40,
        "eval/seconds": 7.5,
        "eval/clean": 0.9,
        "eval/linf/pgd20": 0.5,
        "eval/linf/square": 0.45,
        "eval/linf/both": 0.45,
        "eval/l2/pgd20": 0.75,
        "eval/union": 0.4,
        "eval/flags": 1,
        "eval/flags_up": "randomised",
    }
    assert found["eval/union/low"] < 0.4 < found["eval/union/high"]


def test_curves_have_axes_of_their_own():
    curve, budget = lines(tree())
    assert curve == ("eval/linf/curve", "eval/linf/eps", [(0.0, 0.9), (0.1, 0.5)])
    assert budget[:2] == ("eval/linf/budget/pgd20", "eval/linf/budget/pgd20/steps")
    assert budget[2] == [(0, 0.9), (1, 0.7), (20, 0.5)]


def test_without_wandb_an_evaluation_is_told_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    mirror(tree(), [], tmp_path / "eval.html", tmp_path, Tracking(wandb="auto"))
    assert capsys.readouterr().err.count("\n") == 1


def test_a_wandb_that_fails_names_the_page_that_holds_everything(tmp_path, monkeypatch, capsys):
    def broken(*given, **named):
        raise OSError("no room")

    monkeypatch.setattr(ours, "Session", broken)
    mirror(tree(), [], tmp_path / "eval.html", tmp_path, Tracking(wandb="offline"))
    assert f"no room. The run goes on without it; {tmp_path / 'eval.html'} and the report" in capsys.readouterr().err


@pytest.mark.slow
def test_an_offline_evaluation_holds_figures_curves_pictures_and_the_page(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    picture, html = tmp_path / "eval-linf.png", tmp_path / "eval.html"
    picture.write_bytes(draw(report(), exhibits(), NAMES, "demo")["eval-linf.png"])
    html.write_text(page(tree(), exhibits()), encoding="utf-8")
    mirror(tree(), [picture], html, tmp_path, Tracking(wandb="offline", project="p"))
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    told = whole(written)
    assert told.kind == "eval"
    assert told.name == tree()["model"]
    assert told.identity == (tmp_path / "wandb-id").read_text().strip()
    assert told.exit_code == 0
    assert told.config["identity"] == tree()["identity"]
    assert {name: told.summary[name] for name in summary(tree())} == json.loads(json.dumps(summary(tree())))
    rows = [row for row in told.history if "eval/linf/curve" in row]
    assert [(row["eval/linf/eps"], row["eval/linf/curve"]) for row in rows] == [(0.0, 0.9), (0.1, 0.5)]
    assert [row["eval/linf/budget/pgd20"] for row in told.history if "eval/linf/budget/pgd20" in row] == [0.9, 0.7, 0.5]
    assert list(written.parent.glob("files/media/images/pictures/eval-linf_*.png"))
    (sent,) = written.parent.glob("files/media/html/eval/page_*.html")
    assert Path(sent).read_text(encoding="utf-8") == html.read_text(encoding="utf-8")
