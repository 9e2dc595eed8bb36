"""tools.convert: an ensemble in one file, and networks whose noise is settled; each checked by its own reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import robust_train
from robust_train.data.shards import Shards
from robust_train.keyed import Key
from robust_train.losses import cross_entropy
from robust_train.models import exported
from robust_train.models.blueprint import Blueprint
from robust_train.models.noise import draws, settle
from robust_train.models.timm import Timm
from robust_train.read.errors import ConfigError
from robust_train.subject import Subject
from robust_train.tools.convert import main
from robust_train.tools.ensemble import main as ensemble
from tests.saved_networks import BEHIND_V1, CNN, RESNET, SIGHT, saved

NOWHERE = Shards("/nowhere/*.tar", 10, 32, channels=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """cnn, resnet and v1, whose noise is drawn; and all three as one, of logits and of probabilities."""
    folder = tmp_path_factory.mktemp("study")
    for seed, (name, plan) in enumerate({"cnn": CNN, "resnet": RESNET, "v1": BEHIND_V1}.items()):
        saved(folder / name, plan, NOWHERE, seed)
    ensemble([str(folder / "plain.yaml"), str(folder / "cnn"), str(folder / "resnet"), "--weights", "0.25,0.75"])
    words = ["--mean", "probabilities", "--weights", "0.5,0,0.5"]
    ensemble([str(folder / "all.yaml"), *(str(folder / name) for name in ("cnn", "resnet", "v1")), *words])
    return folder


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(count))


def agrees(program, network) -> None:
    """Any batch, the same answer and the same gradient of the images."""
    for count in (1, 3):
        points, targets = images(count).requires_grad_(), torch.arange(count)
        ours, theirs = network(points), program(points)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
        (mine,) = torch.autograd.grad(cross_entropy(ours, targets).sum(), points)
        (other,) = torch.autograd.grad(cross_entropy(theirs, targets).sum(), points)
        torch.testing.assert_close(other, mine, atol=1e-5, rtol=1e-3)


def test_an_ensemble_is_one_program(study, tmp_path, capsys):
    main([str(study / "plain.yaml"), "--to", "export", "--out", str(tmp_path / "e.pt2")])
    assert "as export: " in capsys.readouterr().out
    agrees(torch.export.load(tmp_path / "e.pt2").module(), robust_train.load(study / "plain.yaml"))


@pytest.mark.parametrize(("name", "noise"), [("v1", "off"), ("all.yaml", "fixed")])
def test_a_settled_network_is_one_program_of_the_same_noise(study, tmp_path, name, noise):
    """An ensemble too, whose member of weight 0 says nothing."""
    main([str(study / name), "--noise", noise, "--to", "export", "--out", str(tmp_path / "a.pt2")])
    network = Subject(str(study / name), noise=noise).network()
    program = torch.export.load(tmp_path / "a.pt2").module()
    agrees(program, network)
    with torch.no_grad():
        assert torch.equal(program(images(2)), program(images(2)))


def test_the_baked_draw_is_one_that_the_network_can_draw(study):
    network = robust_train.load(study / "v1")
    found = draws(network, (1, 32, 32))
    assert list(found) == [f"model.{name}" for name in network.noisy]
    settled = robust_train.load(study / "v1")
    settle(settled, "fixed", (1, 32, 32))
    with torch.no_grad(), network.noise(Key(0).of("fixed").rows(torch.zeros(4, dtype=torch.int64))):
        torch.testing.assert_close(settled(images(4)), network(images(4)))
    again = draws(robust_train.load(study / "v1").train(), (1, 32, 32))
    assert all(torch.equal(again[name], drawn) for name, drawn in found.items())
    assert draws(settled, (1, 32, 32)) == {}
    (drawn,) = found.values()
    assert drawn.shape == (1, 6, 16, 16)
    assert abs(float(drawn.mean())) < 4 / drawn.numel() ** 0.5


def test_noise_that_is_drawn_is_refused_by_every_form_with_what_to_say(study, tmp_path, capsys):
    for to, out in (("export", "a.pt2"), ("timm", "a"), ("onnx", "a.onnx")):
        with pytest.raises(SystemExit) as error:
            main([str(study / "v1"), "--to", to, "--out", str(tmp_path / out)])
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert "the network draws noise at each forward (model.block1.block.noise)" in said
        assert "--noise off, or --noise fixed" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main([str(study / "cnn"), "--noise", "off", "--to", "export", "--out", str(tmp_path / "a.pt2")])
    assert "draws no noise of its own" in capsys.readouterr().err


def test_a_v1_front_end_without_noise_needs_no_word_about_it(tmp_path):
    from dataclasses import replace

    plan = replace(BEHIND_V1, edits=(replace(SIGHT, noise=None),))
    main([str(saved(tmp_path / "quiet", plan, NOWHERE)), "--to", "export", "--out", str(tmp_path / "quiet.pt2")])
    agrees(torch.export.load(tmp_path / "quiet.pt2").module(), robust_train.load(tmp_path / "quiet"))


@pytest.mark.parametrize("noise", ["fixed", "off"])
def test_a_folder_says_what_became_of_the_noise_and_is_read_so(study, tmp_path, noise):
    main([str(study / "v1"), "--noise", noise, "--to", "timm", "--out", str(tmp_path / "v1")])
    assert json.loads((tmp_path / "v1" / "config.json").read_text(encoding="utf-8"))["noise"] == noise
    with torch.no_grad():
        expected = Subject(str(study / "v1"), noise=noise).network()(images(3))
        torch.testing.assert_close(exported.read_folder(tmp_path / "v1")(images(3)), expected)


def test_a_timm_model_behind_a_front_end_is_none_that_timm_builds(tmp_path):
    from dataclasses import replace

    plan = Blueprint(Timm("test_resnet"), edits=(replace(SIGHT, noise=None, stride=4),))
    assert not exported.of_timm_alone(plan)
    assert exported.of_timm_alone(Blueprint(Timm("test_resnet")))
    assert exported.described(plan, None) == "test_resnet + v1"
    assert exported.described(plan, "off") == "test_resnet + v1, noise off"
    folder = saved(tmp_path / "run", plan, NOWHERE)
    main([str(folder), "--to", "timm", "--out", str(tmp_path / "folder")])
    with torch.no_grad():
        expected = robust_train.load(folder)(images(2))
        torch.testing.assert_close(exported.read_folder(tmp_path / "folder")(images(2)), expected)


@pytest.mark.parametrize(
    "words", [["--to", "timm"], ["--to", "robustbench", "--dataset", "cifar10", "--threat", "linf", "--eps", "0.1"]]
)
def test_a_form_of_one_network_holds_no_ensemble(study, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(study / "plain.yaml"), *words, "--out", str(tmp_path / "out")])
    assert error.value.code == 2
    assert "this is an ensemble of 2: write the whole by --to onnx or --to export" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_on_other_noise_is_refused(study):
    from robust_train.tools.convert import report_of

    subject = Subject(str(study / "v1"), noise="off")
    path = study / "report.json"
    for noise in ({}, {"noise": "fixed"}):
        identity = {"weights": subject.digest, "averaged": True, **noise}
        tree = {"weights": "runs/v1", "identity": identity, "figures": [], "flags": []}
        path.write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"here it is off: evaluate it by tools\.eval --noise off"):
            report_of(str(path), subject)
    path.write_text(json.dumps({**tree, "identity": {**identity, "noise": "off"}}), encoding="utf-8")
    assert report_of(str(path), subject)["weights"] == "runs/v1"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "noise"), [("plain.yaml", None), ("all.yaml", "fixed"), ("v1", "off")])
def test_onnxruntime_answers_as_the_ensemble_and_the_settled_network(study, tmp_path, name, noise):
    words = [] if noise is None else ["--noise", noise]
    main([str(study / name), *words, "--to", "onnx", "--out", str(tmp_path / "a.onnx")])
    program = exported.read_onnx(tmp_path / "a.onnx")
    network = Subject(str(study / name), noise=noise or "drawn").network()
    for count in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(images(count)), network(images(count)), atol=1e-4, rtol=1e-4)
