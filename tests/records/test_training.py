"""tools.report: the page of a training says what its folder says, and no more."""

from __future__ import annotations

import json
import re

import pytest
from trained_folders import folder

from robust_train.records.training import POINTS, averaged, described
from robust_train.tools.report import main


def test_the_page_of_a_run_holds_all_that_its_folder_does(tmp_path, capsys):
    run = folder(tmp_path / "a", batch=16)
    told = [{"run": "<i>old</i>", "checkpoint": "runs/old/checkpoints/20", "updates": 20, "weights": "ab" * 32}]
    (run / "lineage.json").write_text(json.dumps(told))
    main([str(run)])
    assert capsys.readouterr().out == f"written: {run}/training.html\n"
    text = (run / "training.html").read_text()
    for words in ("Loss", "Learning rate", "Norm of the gradient", "Images a second", "90.00 %", "25.00 %", "360"):
        assert words in text
    assert "branches from &lt;i&gt;old&lt;/i&gt;, update 20" in text
    assert "seed: 0" in text
    assert "1 values are not finite" in text
    assert 'alt="attack of a after 40 updates' in text
    assert not re.search(r"(src|href)=\"(?!data:|#)|<script|url\((?!#)|@import", text)
    assert "<b>small" not in text
    assert text.count("<svg") == text.count('role="img" aria-label=') == text.count("<caption>") - 1 == 6


def test_curves_are_the_numbers_of_the_file_and_the_final_evaluation_is_none_of_them(tmp_path):
    tree = described([str(folder(tmp_path / "a"))])
    charts = {chart["heading"]: chart for chart in tree["charts"]}
    loss = charts["Loss"]
    assert loss["names"] == ["loss/robust"]
    assert (loss["rows"][0], loss["rows"][-1]) == (("0", ["2"]), ("39", ["1.025"]))
    assert "loss/robust from 2 to 1.025" in loss["says"]
    assert charts["Accuracy on validation images"]["rows"] == [("19", ["0.69"]), ("39", ["0.89"])]
    assert charts["Accuracy in training, on the update's images"]["names"] == ["accuracy/attacked"]


def test_differences_are_from_the_defaults_from_a_base_and_from_the_first(tmp_path):
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", batch=16, precision="bf16")
    alone = described([str(b)])["runs"][0]
    assert alone["against"] == "the defaults of every field"
    assert "batch: was absent, is now 16" in alone["differ"]
    assert "precision: was fp32, is now bf16" in alone["differ"]
    assert not any(said.startswith(("compile", "optimiser", "validate", "records")) for said in alone["differ"])
    second = described([str(a), str(b)])["runs"][1]
    assert second["against"] == "a"
    assert sorted(second["differ"]) == ["batch: was 32, is now 16", "precision: was fp32, is now bf16"]
    based = described([str(b)], str(a / "run.yaml"))["runs"][0]
    assert sorted(based["differ"]) == sorted(second["differ"])


def test_a_sweep_has_mean_and_standard_error_over_its_seeds(tmp_path):
    for seed, shift in enumerate((0.0, 0.02, 0.04)):
        folder(tmp_path / f"seed{seed}" / "madry", 100 * seed, shift)
    folder(tmp_path / "seed0" / "other", 1, ended=False)
    tree = described([str(tmp_path)])
    row, other = tree["finals"]["rows"]
    assert tree["finals"]["columns"] == ["clean", "pgd50"]
    assert row["cells"] == ["92.00 % ± 1.15", "27.00 % ± 1.15"]  # s / sqrt(3) = 0.02 / 1.732
    assert (row["done"], row["of"]) == (3, 3)
    assert (other["cells"], other["done"]) == (["not run", "not run"], 0)
    assert tree["runs"][1]["state"].endswith("not ended")
    loss = next(chart for chart in tree["charts"] if chart["heading"] == "Loss: loss/robust")
    assert loss["names"] == ["madry", "other"]
    assert loss["rows"][0] == ("0", ["2.02 ± 0.012", "2"])


def test_means_are_of_updates_that_all_seeds_have_and_long_lines_are_thinned():
    assert averaged([{0: 1.0, 1: 5.0}, {0: 3.0}]) == [(0.0, 2.0, 1.0)]
    long = averaged([{update: float(update) for update in range(10 * POINTS)}])
    assert len(long) == POINTS
    assert long[0] == (4.5, 4.5, 0.0)


def test_what_is_no_run_is_refused_with_what_was_looked_for(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path)])
    assert error.value.code == 2
    assert "no run's folder (run.yaml and metrics.jsonl)" in capsys.readouterr().err
