"""tools.ensemble, and its file wherever a checkpoint is named: tools.eval, transfer, compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import robust_train
from robust_train.data.digits import Digits
from robust_train.data.shards import Shards
from robust_train.evaluate.mixture import answered, fit_weights, temperature
from robust_train.keyed import Key
from robust_train.models.ensemble import mixed
from robust_train.nouns import Place
from robust_train.subject import Subject
from robust_train.tools import compare as tools_compare
from robust_train.tools import ensemble as tools_ensemble
from robust_train.tools import eval as tools_eval
from robust_train.tools import eval_transfer as tools_transfer
from robust_train.tools import shared
from robust_train.trained import Members
from tests.saved_networks import BEHIND_V1, CNN, RESNET, saved

QUICK = ["--images", "24", "--chunk", "16", "--device", "cpu"]
ATTACK = [*QUICK, "--steps", "2", "--restarts", "1", "--checks", "0", "--curve", "0"]


@pytest.fixture(scope="module")
def base(small_run: Path, tmp_path_factory) -> Path:
    """Runs on the digits: trained, a trained one, and two that are as their seeds made them; v1 draws noise."""
    folder = tmp_path_factory.mktemp("study")
    digits = Digits(folder=str(small_run.parent / "digits"))
    trained = small_run.parent / "run"
    shutil.copytree(trained, folder / "trained", ignore=shutil.ignore_patterns("eval*"))
    saved(folder / "cnn", CNN, digits, seed=1)
    saved(folder / "resnet", RESNET, digits, seed=2)
    saved(folder / "v1", BEHIND_V1, digits, seed=3)
    return folder


@pytest.fixture
def study(base: Path, tmp_path: Path) -> Path:
    """A copy, without what was found of it."""
    return shutil.copytree(base, tmp_path / "study")


def made(study: Path, *words: str, members: tuple[str, ...] = ("trained", "resnet"), name: str = "both.yaml") -> Path:
    tools_ensemble.main([str(study / name), *(str(study / member) for member in members), *words])
    return study / name


def noted(subject: Subject) -> list[str]:
    """What is noted of a subject, but for what its pixels went through."""
    return [note for note in shared.of_subject(subject, None, subject.images()) if not note.startswith("pixels:")]


def report(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def shards(study: Path, which: str = "validation") -> str:
    data = Subject(str(study / "trained")).images()
    return str(Path(str(data.validation)).parent / f"digits-{which}-*.tar")


def test_the_file_names_its_members_from_where_it_lies(study, capsys, monkeypatch):
    monkeypatch.chdir(study.parent)
    tools_ensemble.main(["study/deep/e.yaml", "study/trained", "study/resnet", "--weights", "1/4,3/4"])
    assert "ensemble of 2: study/deep/e.yaml" in capsys.readouterr().out
    text = (study / "deep" / "e.yaml").read_text(encoding="utf-8")
    assert "../trained" in text
    assert str(study) not in text
    found = robust_train.load("study/deep/e.yaml")
    assert (found.mean, found.weights.tolist()) == ("logits", [0.25, 0.75])


def test_fitted_shares_are_those_of_the_members_answers_on_the_images_asked_for(study, capsys):
    """The definition: take all logits at once, fit, and look at temperatures and accuracies."""
    words = ["--mean", "probabilities", "--fit", shards(study), "--images", "50", "--skip", "30"]
    path = made(study, *words)
    ensemble, data = robust_train.load(path), Subject(str(study / "trained")).images()
    batch = next(iter(data.validation_batches(Place(), 80, 80)))[30:]
    logits, labels = answered(ensemble, [batch], Key(0).of("fit"))
    weights = fit_weights(logits, labels, "probabilities")
    found = Members.load(path)
    assert found.mean == "probabilities"
    assert_close(torch.tensor(found.weights, dtype=torch.float64), weights, atol=1e-6, rtol=0)
    assert found.fitted is not None
    assert (found.fitted["images"], found.fitted["skip"]) == (50, 30)
    assert list(found.fitted["data"]) == ["digits-validation-000000.tar"]
    for own, said in zip(logits, found.fitted["members"], strict=True):
        assert said["temperature"] == pytest.approx(temperature(own, labels))
        assert said["accuracy"] == pytest.approx(float((own.argmax(1) == labels).double().mean()))
    answer = mixed(logits.double(), weights, "probabilities")
    assert found.fitted["ensemble"]["accuracy"] == pytest.approx(float((answer.argmax(1) == labels).double().mean()))
    assert found.fitted["ensemble"]["loss"] <= found.fitted["equal"]["loss"]
    assert found.fitted["ensemble"]["loss"] <= min(one["loss"] for one in found.fitted["members"]) + 1e-9
    said = capsys.readouterr().out
    assert "50 held-out images" in said
    assert "temperature" in said
    assert "all, equal weights" in said


def test_images_that_a_member_has_seen_are_noted_and_those_of_an_evaluation_too(study, capsys):
    path = made(study, "--fit", shards(study), "--images", "20")
    said = capsys.readouterr().out
    assert said.count("was trained or validated on images of digits-validation-000000.tar") == 2
    subject = Subject(str(path))
    (note,) = noted(subject)
    assert "weights were fitted on images of these shards" in note
    other = Subject(str(path), data=shards(study, "train"))
    assert noted(other) == []
    silent = saved(study / "silent", CNN, Shards("/nowhere/*.tar", 10, 32, channels=1))
    assert tools_ensemble.seen_before([str(silent)], {"a.tar": "00"}) == [
        f"{silent} does not say what it was trained on: whether these images are new to it is open"
    ]
    assert tools_ensemble.seen_before([str(study / "cnn")], {"a.tar": "00"}) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["e.json", "trained"], "e.json: name the ensemble's file first"),
        (["e.yaml", "trained", "--images", "5"], "--images and --skip say which images of --fit"),
        (["e.yaml", "trained", "--fit", "x", "--images", "0"], "at least 1 image"),
        (["e.yaml", "trained", "--fit", "x", "--weights", "1"], "not allowed with argument"),
        (["e.yaml", "trained", "--weights", "half"], "'half' is no number"),
        (["e.yaml", "trained", "resnet", "--weights", "0.5,0.6"], "must be 2 shares"),
        (["e.yaml", "trained", "none"], "none does not exist. Name a run's folder"),
        (["e.yaml", "trained", "--fit", "none-*.tar"], "matches no file"),
        (["there.yaml", "trained"], "there.yaml is there already"),
        (["e.yaml", "there.yaml"], "its member there.yaml is an ensemble itself"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_file(study, words, said, capsys, monkeypatch):
    monkeypatch.chdir(study)
    (study / "there.yaml").write_text("members: [trained]\n", encoding="utf-8")
    with pytest.raises(SystemExit) as error:
        tools_ensemble.main(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (study / "e.yaml").exists()


def test_no_image_left_to_fit_on_is_refused(study, capsys):
    with pytest.raises(SystemExit):
        made(study, "--fit", shards(study), "--skip", "360")
    assert "there are no images to fit on" in capsys.readouterr().err


def test_an_ensemble_is_judged_as_a_checkpoint_is_and_its_report_lies_beside_its_file(study, capsys):
    path = made(study)
    tools_eval.main([str(path), *ATTACK])
    tree = report(study / "both" / "eval.json")
    assert (tree["model"], tree["weights"], tree["noise"]) == (str(path), str(path), None)
    clean, robust = tree["figures"]
    network, data = robust_train.load(path), Subject(str(path)).images()
    batch = next(iter(data.validation_batches(Place(), 24, 24))).to("cpu")
    with torch.no_grad():
        assert clean["right"] == int((network(batch.images).argmax(1) == batch.targets).sum())
    assert robust["attack"]["threat"] == {"use": "linf", "eps": 0.1}, "its first member's run says it"
    assert (study / "both" / "eval.html").is_file()
    assert str(path) in (study / "both" / "eval.html").read_text(encoding="utf-8")
    capsys.readouterr()
    tools_eval.main([str(path), *ATTACK])
    assert "going on: 5 pieces" in capsys.readouterr().err


def test_its_identity_is_that_of_its_file_and_of_every_member(study):
    path = made(study)
    data = Subject(str(path)).images()
    first = Subject(str(path)).identity(data)["weights"]
    assert Subject(str(path)).identity(data)["weights"] == first
    away = shutil.copytree(study, study.parent / "away")
    assert Subject(str(away / "both.yaml")).identity(data)["weights"] == first
    manifests = ("trained/checkpoints/00000004/manifest.json", "resnet/checkpoints/00000001/manifest.json")
    for changed in ("both.yaml", *manifests):
        kept = (study / changed).read_bytes()
        (study / changed).write_bytes(kept + b"\n")
        assert Subject(str(path)).identity(data)["weights"] != first, changed
        (study / changed).write_bytes(kept)


def test_a_member_that_was_picked_as_its_runs_best_is_noted(study):
    path = made(study)
    assert not Subject(str(path)).picked
    best = {"checkpoint": "00000001", "accuracy": 0.5}
    (study / "resnet" / "checkpoints" / "best.json").write_text(json.dumps(best), encoding="utf-8")
    assert Subject(str(path)).picked
    assert not Subject(str(path), data=shards(study)).picked
    (note,) = noted(Subject(str(path)))
    assert "a member's checkpoint was picked as the run's best" in note


def test_an_ensemble_under_corruptions(study):
    path = made(study)
    tools_eval.main(["corruptions", str(path), "--kinds", "brightness", *QUICK])
    tree = report(study / "both" / "eval-corruptions.json")
    assert len(tree["cells"]) == 5
    assert tree["model"] == str(path)
    tools_eval.main(["corruptions", str(study / "trained"), "--kinds", "brightness", *QUICK])
    own = report(study / "trained" / "eval-corruptions.json")
    assert own["on"] == tree["on"]
    assert own["identity"]["weights"] != tree["identity"]["weights"]


def test_an_ensemble_among_checkpoints_in_a_matrix_and_side_by_side(study, capsys):
    path, member = made(study), study / "trained"
    words = ["--images", "16", "--steps", "2", "--eps", "0.1", "--device", "cpu", "--folder", str(study / "matrix")]
    tools_transfer.main([str(path), str(member), *words])
    matrix = report(study / "matrix" / "transfer.json")
    assert matrix["names"] == ["both", "trained"]
    assert matrix["weights"]["both"] == str(path)
    tools_eval.main([str(path), *ATTACK])
    shutil.copy(study / "both" / "eval.json", member / "eval.json")
    tools_compare.main([str(path), str(member), "--json", str(study / "c.json")])
    side = report(study / "c.json")
    assert [one["name"] for one in side["reports"]] == ["both", "trained"]
    assert len(side["rows"]) == 2
    (study / "new.yaml").write_text("members: [trained]\n", encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        tools_compare.main([str(study / "new.yaml"), str(member)])
    assert f"`python -m tools.eval {study / 'new.yaml'}` makes one" in capsys.readouterr().err


def test_noise_of_the_network_is_a_choice_that_the_report_names(study, capsys):
    """Drawn: attacked through a mean over draws. Fixed and off: the network answers the same each time."""
    run, found = str(study / "v1"), {}
    for noise in ("drawn", "fixed", "off"):
        words = ["--noise", noise] if noise != "drawn" else []
        tools_eval.main([run, *ATTACK, *words, "--json", str(study / f"{noise}.json")])
        found[noise] = report(study / f"{noise}.json")
        assert found[noise]["noise"] == noise
        page = (study / f"{noise}.html").read_text(encoding="utf-8")
        assert "network&#39;s own noise was" in page
    said = capsys.readouterr().out
    for text in ("noise was drawn, as in training", "noise was one draw, the same for every", "noise was off"):
        assert said.count(text) == 1
    assert [found[noise]["figures"][1]["attack"]["eot"] for noise in found] == [20, 1, 1]
    assert "noise" not in found["drawn"]["identity"]
    assert [found[noise]["identity"]["noise"] for noise in ("fixed", "off")] == ["fixed", "off"]
    raised = {noise: {flag["name"]: flag["raised"] for flag in tree["flags"]} for noise, tree in found.items()}
    assert [raised[noise]["randomised"] for noise in found] == [True, False, False]
    assert [raised[noise]["train mode"] for noise in ("fixed", "off")] == [False, False]


@pytest.mark.parametrize("noise", ["fixed", "off"])
def test_a_settled_network_answers_by_the_image_alone_and_an_ensemble_member_by_member(study, noise):
    alone = Subject(str(study / "v1"), noise=noise).network()
    path = made(study, members=("v1", "v1", "cnn"), name="three.yaml")
    three = Subject(str(path), noise=noise).network()
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    images[3] = images[0]
    with torch.no_grad():
        for network in (alone, three):
            whole = network(images)
            with network.noise(Key(9).rows(torch.arange(6))):
                assert torch.equal(network(images), whole)
            assert_close(torch.cat([network(one[None]) for one in images]), whole)
            assert_close(whole[3], whole[0])
            assert network.noisy == []
        one, other, _ = three.answers(images)
        quiet = Subject(str(study / "v1"), noise="off").network()(images)
        assert torch.equal(one, other) == torch.equal(one, quiet) == (noise == "off")
        drawn = Subject(str(study / "v1")).network()
        with drawn.noise(mode="off"):
            assert torch.equal(drawn(images), quiet)


@pytest.mark.parametrize(("command", "words"), [("attack", ["--noise", "off"]), ("corruptions", ["--noise", "fixed"])])
def test_a_network_without_noise_has_none_to_be_switched(study, command, words, capsys):
    with pytest.raises(SystemExit) as error:
        tools_eval.main([command, str(study / "cnn"), *QUICK, *words])
    assert error.value.code == 2
    assert f"--noise {words[1]}: this network draws no noise of its own" in capsys.readouterr().err


def test_corruptions_know_the_noise_too(study):
    words = ["--kinds", "brightness", *QUICK]
    tools_eval.main(["corruptions", str(study / "v1"), *words, "--noise", "off"])
    tree = report(study / "v1" / "eval-corruptions.json")
    assert (tree["noise"], tree["identity"]["noise"]) == ("off", "off")
    assert any("noise was off" in note for note in tree["notes"])


@pytest.mark.slow
def test_autoattack_runs_on_an_ensemble(study):
    path = made(study, "--mean", "probabilities")
    words = ["--images", "8", "--attack", "autoattack", "--checks", "0", "--curve", "0", "--device", "cpu"]
    tools_eval.main([str(path), *words, "--eps", "0.15"])
    tree = report(study / "both" / "eval.json")
    names = [figure["name"] for figure in tree["figures"]]
    assert names[0] == "clean"
    assert names[-1] == "autoattack"


@pytest.mark.slow
@pytest.mark.cluster
def test_two_devices_judge_an_ensemble_as_one_does(local_ray, study):
    path, found = made(study, members=("trained", "v1")), []
    for devices in ("1", "2"):
        words = [*QUICK, "--steps", "1", "--restarts", "1", "--checks", "0", "--curve", "0", "--chunk", "8"]
        shutil.rmtree(study / "both", ignore_errors=True)
        tools_eval.main([str(path), *words, "--noise", "fixed", "--devices", devices])
        tree = report(study / "both" / "eval.json")
        found.append([figure["right"] for figure in tree["figures"]])
    assert found[0] == found[1]
