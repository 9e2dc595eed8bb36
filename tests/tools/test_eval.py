"""tools.eval: one command from a checkpoint, or a timm model, to an honest table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import robust_train
from robust_train.attacks.pgd import PGD
from robust_train.checkpoint import newest, read
from robust_train.data.shards import Shards
from robust_train.keyed import Key
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.threats.linf import Linf
from robust_train.tools import make_shards
from robust_train.tools.eval import main
from robust_train.tools.eval_attack import arguments, wanted

QUICK = ["--images", "40", "--steps", "2", "--checks", "0"]


@pytest.fixture(scope="module")
def report(small_run: Path, tmp_path_factory) -> dict:
    """The report on the run, as written by the command."""
    target = tmp_path_factory.mktemp("report") / "deep" / "eval.json"
    main([str(small_run.parent / "run"), *QUICK, "--curve", "2", "--json", str(target)])
    return json.loads(target.read_text(encoding="utf-8"))


def test_the_report_says_how_each_figure_was_obtained(report, small_run):
    clean, robust = report["figures"]
    assert (clean["name"], robust["name"]) == ("clean", "pgd2")
    assert clean["images"] == robust["images"] == report["images"] == 40
    assert clean["accuracy"] == clean["right"] / 40 >= robust["accuracy"] == robust["right"] / 40
    assert robust["attack"]["use"] == "restarts"
    assert robust["attack"]["restarts"] == 2
    assert robust["attack"]["attack"]["threat"] == {"use": "linf", "eps": 0.1}
    assert robust["attack"]["attack"]["step_size"] == pytest.approx(2.5 * 0.1 / 2)
    low, high = robust["interval95"]
    assert low <= robust["accuracy"] <= high
    assert report["seed"] == 0
    assert report["versions"]["torch"] == torch.__version__
    assert report["weights"].endswith("checkpoints/00000004")
    assert list(report["identity"]["data"]) == ["digits-validation-000000.tar"]


def test_the_curve_goes_to_twice_the_radius_and_the_classes_add_up(report):
    (curve,) = report["curves"]
    assert [point["eps"] for point in curve] == pytest.approx([0, 0.1, 0.2])
    assert [row["class"] for row in report["classes"]] == [str(digit) for digit in range(10)]
    assert sum(row["images"] for row in report["classes"]) == 40
    assert sum(row["right/clean"] for row in report["classes"]) == report["figures"][0]["right"]
    assert sum(row["right/linf/pgd2"] for row in report["classes"]) == report["figures"][1]["right"]


def test_pictures_are_written_beside_the_report(report):
    for path, name in zip(report["pictures"], ("eval-linf.png", "eval-curve-linf.png"), strict=True):
        assert Path(path).name == name
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_the_chunk_changes_no_figure(report, small_run, tmp_path):
    main([str(small_run.parent / "run"), *QUICK, "--curve", "0", "--chunk", "7", "--json", str(tmp_path / "a.json")])
    other = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert [figure["right"] for figure in other["figures"]] == [figure["right"] for figure in report["figures"]]
    assert other["classes"] == report["classes"]
    assert other["curves"] == []
    assert not (tmp_path / "eval-curve-linf.png").exists()


def test_the_tables_are_printed(small_run, tmp_path, capsys):
    main([str(small_run.parent / "run"), *QUICK, "--curve", "0", "--eps", "8/255", "--json", str(tmp_path / "a.json")])
    said = capsys.readouterr().out
    assert "40 images" in said
    assert re.search(r"pgd2 +linf +0.03137", said)
    assert "flags: " in said
    assert "95 % interval" in said
    assert "weakest first" in said


def test_a_loaded_network_has_the_averaged_weights_and_any_attack_works_on_it(small_run):
    folder = small_run.parent / "run"
    network = robust_train.load(folder)
    checkpoint = newest(folder)
    averaged, raw = read(checkpoint, "average"), read(checkpoint, "weights")
    own = network.model.state_dict()
    assert all(torch.equal(own[name], averaged[name].to(own[name].dtype)) for name in averaged)
    trained = robust_train.load(checkpoint / "weights.safetensors", averaged=False)
    assert all(torch.equal(value, raw[name]) for name, value in trained.model.state_dict().items())
    assert any(not torch.equal(own[name], raw[name]) for name in averaged)
    assert not network.training
    images, targets = torch.rand(3, 1, 32, 32), torch.tensor([1, 2, 3])
    adversarial = PGD(Linf(8 / 255), steps=3, step_size=2 / 255)(network, images, targets, Key(0))
    assert float((adversarial - images).abs().max()) == pytest.approx(8 / 255, rel=1e-5)


def test_a_timm_model_is_judged_by_its_name_and_weights(small_run, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = robust_train.load("test_resnet", classes=10, size=32)
    save_file(network.model.state_dict(), tmp_path / "weights.safetensors")
    shards = str(small_run.parent / "digits" / "digits-validation-*.tar")
    words = ["--model", "test_resnet", "--weights", str(tmp_path / "weights.safetensors"), "--classes", "10"]
    words += ["--size", "32", "--data", shards, "--eps", "4/255", *QUICK, "--curve", "0"]
    main([*words, "--json", str(tmp_path / "eval.json")])
    found = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert found["model"] == "test_resnet"
    assert found["figures"][1]["eps"] == pytest.approx(4 / 255)
    images = torch.rand(2, 3, 32, 32)
    again = robust_train.load(tmp_path / "weights.safetensors", model="test_resnet", classes=10, size=32)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_a_checkpoint_needs_neither_the_training_shards_nor_the_weights_it_began_with(small_run, tmp_path):
    """The run as saved names both; where it is judged they may be gone."""
    from robust_train.loading import validation_of
    from robust_train.models.timm import Timm

    run = Run.load(small_run)
    model = Timm("test_resnet", weights="/nowhere/weights.pth")
    begun = replace(run, network=replace(run.network, model=model))
    assert begun.network.bare().model == Timm("test_resnet")
    assert run.network.bare() == run.network
    shards = run.data.shards
    far = validation_of(replace(shards, train="/nowhere/*.tar"))
    far.prepare()
    assert far.validation_size() == 360
    assert next(iter(validation_of(run.data).checksums().values())) in far.checksums().values()


@pytest.mark.parametrize(
    ("words", "threat"),
    [
        ([], {"use": "linf", "eps": 0.1}),
        (["--eps", "0.2"], {"use": "linf", "eps": 0.2}),
        (["--threat", "l2", "--eps", "1"], {"use": "l2", "eps": 1.0}),
    ],
)
def test_the_threat_model_is_the_runs_unless_another_is_named(small_run, words, threat):
    from robust_train.read.parse import tree_of

    _, evaluation = wanted(arguments([str(small_run.parent / "run"), *words]))
    assert [tree_of(one) for one in evaluation.threats] == [threat]


def test_another_threat_model_needs_a_radius_of_its_own(small_run):
    with pytest.raises(ConfigError, match=r"not attacked in the threat model l1, so it has no eps.*--eps"):
        wanted(arguments([str(small_run.parent / "run"), "--threat", "l1"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a checkpoint, or a model by --model"),
        (["--model", "resnet18"], "--model needs --weights and --data and --eps too"),
        (["runs/x", "--weights", "w.pth"], "--weights needs --model"),
        (["runs/x", "--eps", "eight"], "'eight' is no number: write 0.03 or 8/255"),
        (["runs/x", "--threat", "linf", "l2", "--eps", "0.1"], "2 threat models and 1 eps: give one for each"),
        (["runs/x", "--threat", "linf", "--eps", "0.1", "0.2"], "1 threat models and 2 eps: give one for each"),
        (["runs/x", "--eps", "0.1", "0.2"], "several eps need as many threat models"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused_with_what_it_needs(words, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_several_threat_models_have_a_union_which_is_their_worst(small_run, tmp_path, capsys):
    words = ["--threat", "linf", "l2", "--eps", "0.05", "0.5", "--curve", "0", "--json", str(tmp_path / "a.json")]
    main([str(small_run.parent / "run"), *QUICK, *words])
    figures = {
        figure["threat"] or "clean": figure for figure in json.loads((tmp_path / "a.json").read_text())["figures"]
    }
    assert list(figures) == ["clean", "linf", "l2", "union"]
    assert figures["union"]["right"] <= min(figures["linf"]["right"], figures["l2"]["right"])
    assert figures["union"]["attack"]["of"] == ["linf/pgd2", "l2/pgd2"]
    assert "union" in capsys.readouterr().out


def test_the_same_command_again_makes_nothing_anew(small_run, tmp_path, capsys, monkeypatch):
    """Each piece is kept below the run's eval folder; what is asked for again is read, to the same report."""
    import shutil

    from robust_train.evaluate import robustness

    folder = shutil.copytree(small_run.parent / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    words = [str(folder), *QUICK, "--curve", "1", "--chunk", "16", "--json", str(tmp_path / "a.json")]
    made = []
    tried = robustness.tried
    monkeypatch.setattr(robustness, "tried", lambda *given: made.append(1) or tried(*given))
    main(words)
    first, count = json.loads((tmp_path / "a.json").read_text(encoding="utf-8")), len(made)
    assert count == 9, "three chunks, each clean, attacked, and at the curve's one point"
    next((folder / "eval").rglob("*-00001.pieces")).unlink()
    main(words)
    again = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert len(made) == count + 3
    assert "going on: 7 pieces" in capsys.readouterr().err, "the look, and two chunks of three"
    assert again["notes"] == [*first["notes"], "7 pieces were made by an earlier start: the seconds are of this one"]
    assert {**again, "seconds": 0, "notes": []} == {**first, "seconds": 0, "notes": []}


def test_a_report_that_takes_anothers_place_says_whose(small_run, tmp_path, capsys):
    """And how to have it again; the same command twice, and a new place, say nothing."""
    said = []
    for attack, name in (("pgd", "a"), ("pgd", "a"), ("apgd-ce", "a"), ("pgd", "b")):
        main([str(small_run.parent / "run"), *QUICK, "--attack", attack, "--json", str(tmp_path / f"{name}.json")])
        said.append([line for line in capsys.readouterr().out.splitlines() if "held the report of" in line])
    assert [len(lines) for lines in said] == [0, 0, 1, 0]
    assert said[2][0].startswith(f"note: {tmp_path / 'a.json'} held the report of: python -m tools.eval ")
    assert "--attack pgd" in said[2][0]
    (tmp_path / "b.json").write_text("[]", encoding="utf-8")
    main([str(small_run.parent / "run"), *QUICK, "--attack", "pgd", "--json", str(tmp_path / "b.json")])
    assert "held the report of: another program" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))["images"] == 40


@pytest.mark.slow
@pytest.mark.cluster
def test_two_devices_of_a_ray_cluster_give_one_devices_report(local_ray, small_run, tmp_path):
    """Verdicts are equal to the bit: chunks are dealt whole."""
    import shutil

    from safetensors.torch import load_file

    from robust_train.sealed import Lots

    kept = []
    for devices in ("1", "2"):
        folder = shutil.copytree(
            small_run.parent / "run", tmp_path / f"run{devices}", ignore=shutil.ignore_patterns("eval")
        )
        words = ["--chunk", "16", "--curve", "0", "--devices", devices, "--attack", "apgd-ce"]
        main([str(folder), *QUICK, *words, "--json", str(tmp_path / f"{devices}.json")])
        lots = {path.name: Lots(path).held for path in sorted((folder / "eval").rglob("*.pieces"))}
        lots |= {path.name: {"": load_file(path)} for path in sorted((folder / "eval").rglob("*.safetensors"))}
        kept.append(
            {(name, tag, key): t for name, tags in lots.items() for tag in tags for key, t in tags[tag].items()}
        )
    one, two = kept
    assert one.keys() == two.keys()
    assert len({name for name, _, _ in one}) == 4, "three chunks, and the pictures of one attack"
    assert all(torch.equal(tensor.nan_to_num(-9), two[at].nan_to_num(-9)) for at, tensor in one.items())


COMMANDS = {
    "attack": (
        "upper bound",
        "8/255",
        "python -m tools.eval runs/demo",
        "robust_train.evaluate",
        "--restarts",
        "it goes on",
    ),
    "saved": ("--adversarial FILE", "adv_complete", "upper bound", "what is checked", "it goes on"),
    "corruptions": ("--frost FOLDER", "mCE", "--kinds", "how to read it", "it goes on"),
    "shift": ("--sets NAME=PATH", "imagenet-a", "how to read it", "it goes on"),
    "transfer": ("diagonal", "--amplify", "--devices", "Gaussian noise", "how to read it", "it goes on"),
    "evaluator": ("lipschitz", "FIELD=VALUE", "--list evaluators", "it goes on"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_each_command(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([command, "--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    assert [word for word in COMMANDS[command] if word not in said] == []
    assert f"python -m tools.eval {command}" in said
    main(["--help"])
    assert f"\n  {command} " in capsys.readouterr().out


def test_a_word_that_is_nearly_a_command_is_said(capsys):
    with pytest.raises(SystemExit) as error:
        main(["corruption", "runs/x"])
    assert error.value.code == 2
    assert (
        "'corruption' is no command, and no checkpoint either; did you mean 'corruptions'?" in capsys.readouterr().err
    )


def test_attacks_by_name_by_fields_and_of_ones_own_stand_side_by_side(small_run, tmp_path, monkeypatch, capsys):
    """Each by itself; what leaves the ball is refused; the same again makes nothing anew, and another function all."""
    lab = tmp_path / "own_lab.py"
    lab.write_text(LAB.format(size=0.1), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [str(small_run.parent / "run"), "--images", "24", "--checks", "0", "--curve", "0", "--steps", "3"]
    words += ["--uses", "own_lab", "--attack", "fgsm", "{use: apgd, towards: 3}", "flip-pixels", "own_lab:far"]
    main([*words, "--json", str(tmp_path / "a.json")])
    report = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    names = [figure["name"] for figure in report["figures"]]
    assert names == ["clean", "fgsm", "apgd-ce-t-3", "flippixels", "far", "worst"]
    clean, *each, worst = (figure["right"] for figure in report["figures"])
    assert worst <= min(each)
    assert each[-1] == clean
    assert "FLAG linf/far: points refused" in capsys.readouterr().out
    assert report["figures"][1]["cost"] == {"forwards": 1, "backwards": 1}


LAB = """
from dataclasses import dataclass
from robust_train.nouns import Attack, Threat
from robust_train.read.registry import attacks

@attacks.register("flip-pixels")
@dataclass(frozen=True)
class Flip(Attack):
    threat: Threat
    def __call__(self, network, images, targets, key, goal=None):
        return (images + self.threat.eps).clamp(0, 1)
    def cost(self):
        return 0

def far(module, images, labels):
    return 1 - images

def make():
    import torch
    torch.manual_seed({size})
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
"""


def test_every_preprocessing_that_the_pixels_have_seen_is_named(tmp_path, monkeypatch, capsys):
    """In report, table and page, and in the report that Python gets: that of make_shards first."""
    for digit in range(10):
        (tmp_path / "images" / str(digit)).mkdir(parents=True)
        Image.new("L", (20, 16), 25 * digit).save(tmp_path / "images" / str(digit) / "a.png")
    words = tmp_path / "images", tmp_path / "out", "--split", "val", "--resize", "12", "--processes", "1"
    make_shards.main([str(word) for word in words])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain_nets.py").write_text(LAB.format(size=1).replace("flip-pixels", "flip-3").replace("1024", "64"))
    target, urls = tmp_path / "eval.json", str(tmp_path / "out" / "val-*.tar")
    own = ["--model", "plain_nets:make", "--classes", "10", "--size", "8", "--channels", "1", "--eps", "0.1"]
    few = ["--images", "4", "--steps", "1", "--checks", "0", "--curve", "0"]
    capsys.readouterr()
    main([*own, "--data", urls, *few, "--json", str(target)])
    tree = json.loads(target.read_text(encoding="utf-8"))
    made, read = tree["identity"]["preprocessing"]
    assert made == (
        "short sides above 12 pixels resized to 12 (bicubic) and stored as JPEG of quality 95, when shards were made"
    )
    assert read.startswith("short sides resized to 9 pixels (bicubic), the middle 8 x 8 cut out")
    printed, page = capsys.readouterr().out, target.with_suffix(".html").read_text(encoding="utf-8")
    for step in (made, read):
        assert f"pixels: {step}" in tree["notes"]
        assert f"note: pixels: {step}" in printed
        assert f"<li>pixels: {step}</li>" in page
    data = Shards(urls, 10, 8, urls, 1, cache=str(tmp_path / "cache"))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = robust_train.evaluate(network, data=data, threats=Linf(0.1), steps=1, checks=0, curve=0)
    assert found.to_dict()["preprocessing"] == [made, read]
    assert f"pixels: {made}" in str(found)


def test_a_model_of_ones_own_is_judged_without_a_run_and_told_from_another(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(LAB.format(size=1).replace("flip-pixels", "flip-2"), encoding="utf-8")
    words = ["--model", "own_nets:make", "--classes", "10", "--size", "32", "--channels", "1", "--eps", "0.1", *QUICK]
    words += ["--data", str(small_run.parent / "digits" / "digits-validation-*.tar"), "--curve", "0"]
    main(words)
    report = json.loads((tmp_path / "runs" / "own_nets-make" / "eval.json").read_text(encoding="utf-8"))
    assert report["model"] == "own_nets:make"
    assert report["images"] == 40
    assert list(report["identity"]["uses"]) == ["own_nets.py"]
    capsys.readouterr()
    main(words)
    assert "going on" in capsys.readouterr().err
    main([*words[:1], "{use: small-cnn, widths: [4, 8], strides: [2, 2]}", *words[2:], "--weights", _weights(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--model", "own_nets:made", *words[2:]])
    assert "own_nets has no made" in capsys.readouterr().err


def _weights(folder):
    from safetensors.torch import save_file

    from robust_train.loading import of_model

    network = of_model("{use: small-cnn, widths: [4, 8], strides: [2, 2]}", classes=10, shape=(1, 32, 32))
    save_file(network.model.state_dict(), folder / "small.safetensors")
    return str(folder / "small.safetensors")
