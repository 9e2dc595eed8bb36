"""tools.eval transfer: one command from checkpoints to a matrix; and tools.eval's saved adversarial sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from robust_train.attacks.deepfool import DeepFool
from robust_train.attacks.lbfgs import LBFGS
from robust_train.attacks.momentum import MIFGSM
from robust_train.checkpoint import newest
from robust_train.evaluate.transferability import Unbounded
from robust_train.read.errors import ConfigError
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.tools import eval as tools_eval
from robust_train.tools.eval_transfer import arguments, attack_of, main, named, subject_of

QUICK = ["--images", "40", "--steps", "2", "--chunk", "16"]


@pytest.fixture(scope="module")
def runs(small_run: Path, tmp_path_factory) -> list[str]:
    """The run after its last update and after its second: two networks of one kind."""
    folder = tmp_path_factory.mktemp("runs")
    last = shutil.copytree(small_run.parent / "run", folder / "last")
    early = shutil.copytree(small_run.parent / "run", folder / "early")
    shutil.rmtree(newest(early))
    return [str(last), str(early)]


@pytest.fixture(scope="module")
def report(runs: list[str], tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("transfer")
    main([*runs, *QUICK, "--amplify", "0.1", "--folder", str(folder)])
    return json.loads((folder / "transfer.json").read_text(encoding="utf-8"))


def test_the_report_holds_every_cell_and_how_it_was_obtained(report):
    assert report["names"] == ["last", "early"]
    assert len(report["cells"]) == 4 * 4
    assert report["transfer"]["attack"]["threat"] == {"use": "linf", "eps": 0.1}
    assert report["transfer"]["amplify"] == 0.1
    assert [one["name"] for one in report["identity"]] == ["last", "early"]
    for one in report["cells"]:
        clean, held = (
            {f: figure["right"] for f, figure in zip(report["names"], report[part], strict=True)}
            for part in ("clean", "source")
        )
        assert one["examples"] == clean[one["made_for"]] - held[one["made_for"]]
        assert one["fooled"] <= one["both"] <= one["examples"] >= one["wrong"]
        if one["kind"] == "found" and one["made_for"] == one["tried_on"] and one["examples"]:
            assert one["error"] == one["transfer"] == 1
    assert any(one["examples"] for one in report["cells"])
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")


def test_the_same_command_again_goes_on_to_the_same_matrix(runs, report, capsys):
    folder = Path(report["picture"]).parent
    main([*runs, *QUICK, "--amplify", "0.1", "--folder", str(folder)])
    again = json.loads((folder / "transfer.json").read_text(encoding="utf-8"))
    said = capsys.readouterr()
    assert "going on: 9 pieces" in said.err, "three chunks, each clean and made for each network"
    assert again["cells"] == report["cells"]
    assert "error rate over the examples that fooled the network they were made for" in said.out
    assert "amplified noise" in said.out


@pytest.mark.parametrize(
    ("words", "attack"),
    [
        (["--attack", "mi-fgsm"], MIFGSM(Linf(0.1), 10, 0.01)),
        (["--attack", "mi-fgsm", "--eps", "0.2", "--steps", "4"], MIFGSM(Linf(0.2), 4, 0.05)),
        (["--attack", "lbfgs"], Unbounded(LBFGS(L2(32.0), 100))),
        (["--attack", "deepfool"], Unbounded(DeepFool(L2(32.0), 50))),
        (["--attack", "deepfool", "--threat", "linf", "--eps", "0.1"], DeepFool(Linf(0.1), 50)),
    ],
)
def test_the_attack_is_the_one_that_is_named_in_the_runs_threat_model_or_another(runs, words, attack):
    asked = arguments([*runs, *words])
    first = subject_of(runs[0], asked)
    assert attack_of(asked, first, first.images()) == attack


def test_what_cannot_be_is_refused_with_what_it_needs(runs, capsys):
    with pytest.raises(SystemExit):
        main([runs[0]])
    assert "two checkpoints at least" in capsys.readouterr().err
    asked = arguments([*runs, "--threat", "l1"])
    first = subject_of(runs[0], asked)
    with pytest.raises(ConfigError, match="not attacked in the threat model l1, so it has no eps"):
        attack_of(asked, first, first.images())
    with pytest.raises(ConfigError, match="named twice"):
        named([first, first])
    for words, said in ((["--amplify", "25"], "amplify=25 must be"), (["--attack", "lbfgs", "--threat", "l1"], "l2")):
        with pytest.raises(SystemExit):
            main([*runs, *words])
        assert said in capsys.readouterr().err


def test_networks_of_other_image_sizes_are_refused(runs, tmp_path, capsys):
    from safetensors.torch import save_file

    import robust_train

    torch.manual_seed(0)
    save_file(robust_train.load("test_resnet", classes=10, size=64).model.state_dict(), tmp_path / "w.safetensors")
    timm = f"test_resnet={tmp_path / 'w.safetensors'}"
    asked = arguments([runs[0], timm, "--classes", "10", "--size", "64"])
    kind = subject_of(timm, asked)
    assert (kind.model, kind.weights, kind.size) == ("test_resnet", str(tmp_path / "w.safetensors"), 64)
    shards = subject_of(runs[0], asked).images().validation
    with pytest.raises(SystemExit):
        main([runs[0], timm, "--classes", "10", "--size", "64", "--data", shards])
    assert "images 1x32x32 and 3x64x64" in capsys.readouterr().err


def test_help_teaches_how_to_read_the_matrix(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    for word in ("column", "diagonal", "Gaussian noise", "--amplify", "python -m tools.eval transfer runs/a runs/b"):
        assert word in said


def test_a_saved_set_gives_its_own_network_the_figures_that_it_was_saved_with(runs, tmp_path, capsys):
    last, early = (shutil.copytree(run, tmp_path / Path(run).name) for run in runs)
    quick = ["--images", "40", "--curve", "0", "--checks", "0"]
    tools_eval.main([str(last), *quick, "--steps", "2", "--save-adversarial", str(tmp_path / "set.pth")])
    first = json.loads((last / "eval.json").read_text(encoding="utf-8"))
    assert "adversarial images: " in capsys.readouterr().out
    replay = ["--images", "40", "--adversarial", str(tmp_path / "set.pth")]
    tools_eval.main(["saved", str(last), *replay])
    again = json.loads((last / "eval.json").read_text(encoding="utf-8"))
    assert again["figures"][1]["name"] == "saved set set.pth"
    assert again["figures"][1]["attack"]["file"] == str(tmp_path / "set.pth")
    assert [figure["right"] for figure in again["figures"]] == [figure["right"] for figure in first["figures"]]
    tools_eval.main(["saved", str(early), *replay])
    other = json.loads((early / "eval.json").read_text(encoding="utf-8"))
    assert other["figures"][1]["right"] <= other["figures"][0]["right"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        tools_eval.main(["saved", str(last), *replay, "--eps", "0.05"])
    assert "lie outside linf of eps 0.05" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tools_eval.main(["saved", str(last), "--adversarial", str(tmp_path / "set.pth")])
    assert "--images 40" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["saved", "runs/x", "--adversarial", "a", "--steps", "3"], "unrecognized arguments: --steps 3"),
        (["saved", "runs/x"], "the following arguments are required: --adversarial"),
        (
            ["runs/x", "--save-adversarial", "a", "--threat", "linf", "l2", "--eps", "0.1", "1"],
            "one threat model, and 2",
        ),
    ],
)
def test_a_saved_set_beside_what_it_cannot_be_with_is_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        tools_eval.main(words)
    assert said in capsys.readouterr().err
