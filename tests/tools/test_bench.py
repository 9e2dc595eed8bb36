"""The benchmark says what it measured; that an update costs what it says is the laws' to test, not a clock's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.bench import main, measure

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
QUICK = ["network.model={use: small-cnn, widths: [4], strides: [4]}", "engine.part=32"]


def test_the_law_is_the_objectives_cost_over_a_plain_updates() -> None:
    """13 forward passes for five steps of attack, over 3; the efficiency is the measured ratio over that."""
    figures = measure(DEMO, QUICK, rounds=2)
    assert figures["law"] == pytest.approx(13 / 3)
    assert figures["efficiency"] == pytest.approx(figures["ratio"] / figures["law"])
    assert figures["images/s"] == pytest.approx(32 / figures["seconds/update"])


def test_the_figures_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(DEMO), *QUICK, "--rounds", "1", "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text())
    said = capsys.readouterr().out
    assert "law 4.33" in said
    assert f"efficiency {figures['efficiency']:.2f}" in said
