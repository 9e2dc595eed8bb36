"""The benchmark says what it measured; that an update costs what it says is the laws' to test, not a clock's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.tools.bench import banks, main, measure, measure_front

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
MEMBER = DEMO.parent / "v1" / "cifar-member.yaml"
FRONT = ["network.edits.0.simple=6", "network.edits.0.complex=4", "engine.micro_batch=2", "network.group=2"]
QUICK = ["network.model={use: small-cnn, widths: [4], strides: [4]}", "engine.micro_batch=32"]


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


def test_a_front_end_is_measured_beside_the_stem_it_replaces() -> None:
    figures = measure_front(MEMBER, [*FRONT, "network.edits.0.lgn={}"], rounds=1)
    parts = {name.removeprefix("ratio/") for name in figures if name.startswith("ratio/")}
    alone = {"stem", "front", "front without noise", "lgn without noise"}
    alone |= {"bank, grouped", "bank, dense", "bank, two dense", "network, own stem", "network, front"}
    assert parts == alone | {f"{name}, gradient" for name in alone}
    assert figures["ratio/stem"] == figures["ratio/stem, gradient"] == 1
    assert figures["ratio/front"] == pytest.approx(figures["seconds/front"] / figures["seconds/stem"])


def test_the_banks_that_are_compared_are_the_same_kernels() -> None:
    block = Run.load(MEMBER, FRONT).network.edits[0].build((3, 32, 32), 8).block.double()
    images = torch.rand(2, 3, 32, 32).double()
    one, *others = (bank(images) for bank in banks(block).values())
    assert one.shape == (2, 6 + 2 * 4, 16, 16)
    for other in others:
        assert_close(other, one, rtol=0, atol=1e-12)


def test_the_front_end_s_figures_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(MEMBER), *FRONT, "--front", "--rounds", "1"])
    assert "2 images of 32 pixels" in capsys.readouterr().out


def test_a_run_without_a_front_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="name no v1"):
        measure_front(DEMO, [], rounds=1)
