"""Every name that a run writes is listed, with its unit and what it is a mean over."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robust_train import job
from robust_train.engines.plain import PlainEngine
from robust_train.nouns import Place
from robust_train.read.registry import objectives
from robust_train.records import jsonl
from robust_train.records.names import END, FILES, NAMES, TIMES, Name, listed, page, unlisted
from robust_train.run import Run

RUN = """name: small
data: {{use: digits, folder: {home}/digits}}
network: {{model: {{use: small-cnn, widths: [4, 8], strides: [2, 2]}}, group: 16}}
objective: {objective}
updates: 3
batch: 32
folder: {home}/run
optimiser: {{name: adamw, lr: 0.01}}
validate: {{images: 32, every: 2, attack: {pgd}, probe: {{every: 1, attack: {pgd}, images: 8}}}}
records: {{wandb: "off", progress: "off", pictures: false, every: 1}}
"""
PGD = "{use: pgd, threat: {use: linf, eps: 0.1}, steps: 1, step_size: 0.1, start: noise}"
OBJECTIVES = {
    "plain": "{use: plain}",
    "trades": f"{{use: trades, beta: 1.0, attack: {PGD}}}",
    "awp": f"{{use: awp, gamma: 0.01, group: 16, objective: {{use: mart, beta: 1.0, attack: {PGD}}}}}",
    "generalized": f"{{use: generalized, join: average, attacks: [{PGD}, {PGD}]}}",
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_name_that_a_run_writes_is_listed(objective, tmp_path):
    run = Run.load(RUN.format(home=tmp_path, objective=objective, pgd=PGD))
    job.do(run, PlainEngine, Place())
    written = {key for record in jsonl.read(tmp_path / "run" / "metrics.jsonl") for key in record}
    assert {"lr", "probe/pgd1", "accuracy/pgd1", "validation/images"} <= written
    assert unlisted(written, run.objective) == []
    timed = {key for record in jsonl.read(tmp_path / "run" / "timing.jsonl") if "update" in record for key in record}
    assert {"time/update", "images/s"} <= timed
    assert unlisted(timed - {"update"}, files=[TIMES]) == []
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [name for name in unlisted(summary, files=[END]) if name not in written] == []


def test_a_name_of_one_objective_is_no_name_of_another():
    run = Run.load(RUN.format(home="nowhere", objective=OBJECTIVES["plain"], pgd=PGD))
    assert unlisted(["loss/kl", "loss/clean", "gradient/norm/critic"], run.objective) == ["loss/kl"]


def test_capitals_stand_for_words_and_nothing_else_does():
    assert Name("accuracy/ATTACK", "share", "", "").fits("accuracy/pgd10")
    assert not Name("accuracy/ATTACK", "share", "", "").fits("accuracy/")
    assert not Name("gradient/norm", "", "", "").fits("gradient/norm/critic")


def test_every_row_says_its_unit_and_what_it_is_a_mean_over():
    assert all(one.unit and one.over and one.what and one.file in FILES for one in NAMES)
    for one in NAMES:
        assert re.search(rf"^    {re.escape(one.name)} +{re.escape(one.unit)}; {re.escape(one.what)}", listed(), re.M)
    for use, kind in objectives.items():
        assert all(f"objective {use}" in listed() and name in listed() for name, _, _ in kind.tells)


def test_the_page_in_docs_is_what_the_command_lists():
    """After a change write it anew: docs/metrics.md is `robust_train.records.names.page()`."""
    assert (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8") == page()
