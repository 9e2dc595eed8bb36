"""Networks as they lie on disk: a checkpoint, or a file that makes an ensemble of several."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import robust_train
from robust_train import checkpoint
from robust_train.data.digits import Digits
from robust_train.data.shards import Shards
from robust_train.models.activations import Activations
from robust_train.models.blueprint import Blueprint, Recipe
from robust_train.models.convstem import ConvStem
from robust_train.models.ensemble import Ensemble, mixed
from robust_train.models.network import Network
from robust_train.models.small_cnn import SmallCNN
from robust_train.models.timm import Timm
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.read.parse import dump, load_tree, parse
from robust_train.subject import Subject
from robust_train.trained import Members, home_of, network_of, put, recipe_of
from tests.saved_networks import BEHIND_V1, CNN, RESNET, saved


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """runs/cnn, runs/resnet: two architectures of one data set; runs/five, runs/small: of other labels, images."""
    folder = tmp_path_factory.mktemp("study")
    digits = Digits(folder=str(folder / "digits"))
    saved(folder / "runs" / "cnn", CNN, digits, seed=1)
    saved(folder / "runs" / "resnet", RESNET, digits, seed=2)
    plan = Blueprint(SmallCNN(widths=(4,), strides=(2,)))
    saved(folder / "runs" / "five", plan, Shards("/nowhere/*.tar", 5, 32, channels=1))
    saved(folder / "runs" / "small", plan, Shards("/nowhere/*.tar", 10, 16, channels=1))
    return folder


def wrote(folder: Path, text: str, name: str = "ensemble.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def images() -> torch.Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_runs_folder_and_its_checkpoint_are_the_same_network_in_eval_mode(study):
    folder = study / "runs" / "cnn"
    for path in (folder, folder / "checkpoints" / "00000001", str(folder)):
        network = network_of(path)
        assert isinstance(network, Network)
        assert (network.training, network.precision, network.classes) == (False, "fp32", 10)
        with torch.no_grad():
            assert torch.equal(network(images()), network_of(folder)(images()))


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_a_file_of_members_is_their_mean_wherever_it_is_read_from(study, mean, monkeypatch):
    """Paths in it are relative to it, not to the working folder."""
    (study / "deep").mkdir(exist_ok=True)
    text = f"members: [../runs/cnn, ../runs/resnet/checkpoints/00000001]\nmean: {mean}\nweights: [0.25, 0.75]\n"
    path = wrote(study / "deep", text, f"{mean}.yaml")
    one, other = network_of(study / "runs" / "cnn"), network_of(study / "runs" / "resnet")
    for working, named in ((study, path.relative_to(study)), (study / "deep", path.name), (Path("/"), path)):
        monkeypatch.chdir(working)
        ensemble = robust_train.load(named)
        assert isinstance(ensemble, Ensemble)
        assert (ensemble.training, ensemble.precision, ensemble.classes) == (False, "fp32", 10)
        with torch.no_grad():
            said = torch.stack([one(images()), other(images())])
            assert torch.equal(ensemble(images()), mixed(said, torch.tensor([0.25, 0.75]), mean))


def test_equal_weights_are_what_no_weights_mean(study):
    path = wrote(study, "members: [runs/cnn, runs/resnet]\n")
    assert network_of(path).weights.tolist() == [0.5, 0.5]


def test_a_whole_folder_can_be_moved(study, tmp_path):
    wrote(study, "members: [runs/cnn, runs/resnet]\n", "moved.yaml")
    away = shutil.copytree(study, tmp_path / "away")
    with torch.no_grad():
        assert torch.equal(network_of(away / "moved.yaml")(images()), network_of(study / "moved.yaml")(images()))


def test_what_is_written_is_read_again(tmp_path):
    said = {"data": {"a.tar": "00ff"}, "images": 3, "members": [{"accuracy": 0.5, "temperature": 1.25}]}
    members = Members(("runs/a", "runs/b"), "probabilities", (0.1 + 0.2, 1 - (0.1 + 0.2)), said)
    path = wrote(tmp_path, members.dump())
    again = Members.load(path)
    assert again.members == (str(tmp_path / "runs/a"), str(tmp_path / "runs/b"))
    assert (again.mean, again.weights, again.fitted) == (members.mean, members.weights, said)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("members: []\n", ConfigError, r"names no members: give it checkpoints"),
        ("mean: logits\n", ConfigError, r"ensemble\.members: missing"),
        ("members: [runs/cnn]\nwieghts: [1]\n", ConfigError, r"ensemble\.wieghts.*did you mean 'weights'"),
        ("members: [runs/cnn]\nmean: votes\n", ConfigError, r"ensemble\.mean.*votes"),
        ("members: [runs/cnn, runs/none]\n", CheckpointError, r"runs/none does not exist\. Name a run's folder"),
        ("members: [runs/cnn, runs]\n", CheckpointError, r"has no network\.yaml\. Name a run's folder"),
        ("members: [runs/cnn, inner.yaml]\n", ConfigError, r"inner\.yaml is an ensemble itself\. Name that one's"),
        ("members: [runs/cnn, runs/cnn]\nweights: [1]\n", ConfigError, r"must be 2 shares, none below 0"),
        ("members: [runs/cnn]\nweights: [0.5]\n", ConfigError, r"must be 1 shares, none below 0, that add up to 1"),
        ("members: [runs/cnn, runs/five]\n", ConfigError, r"members answer with \[5, 10\] classes"),
        ("members: [runs/cnn, runs/small]\n", ConfigError, r"1x32x32 \(.*cnn\) and 1x16x16 \(.*small\)"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_its_name_with_one_message(study, text, error, said):
    wrote(study, "members: [runs/cnn]\n", "inner.yaml")
    path = wrote(study, text, "bad.yaml")
    with pytest.raises(error, match=said) as caught:
        network_of(path)
    if error is ConfigError:
        assert "bad.yaml" in str(caught.value)


def test_a_file_that_is_not_there_is_no_timm_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"ensemble\.yaml does not exist"):
        robust_train.load("ensemble.yaml")


def test_an_altered_member_is_refused(study, tmp_path):
    away = shutil.copytree(study, tmp_path / "away")
    path = wrote(away, "members: [runs/cnn, runs/resnet]\n")
    weights = away / "runs" / "resnet" / "checkpoints" / "00000001" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"is not the file that was saved"):
        network_of(path)


def test_what_is_found_of_an_ensemble_goes_beside_its_file(study):
    path = wrote(study, "members: [runs/cnn]\n", "v1.yaml")
    assert home_of(path) == study / "v1"
    folder = study / "runs" / "cnn"
    inside = folder / "checkpoints" / "00000001"
    assert {home_of(named) for named in (folder, inside, inside / "weights.safetensors")} == {folder}


# -- what builds a network lies with it --------------------------------------------------------------


def test_a_checkpoint_needs_neither_its_run_nor_its_data_set(small_run, tmp_path):
    """network.yaml alone says how the network is built: a run whose classes are unknown here is not even read."""
    images, before = torch.rand(2, 1, 32, 32), network_of(small_run.parent / "run")
    folder = shutil.copytree(checkpoint.find(small_run.parent / "run"), tmp_path / "away")
    (folder / "run.yaml").write_text("data: {use: gone, folder: /nowhere}\nobjective: {use: gone-too}\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["run.yaml"] = hashlib.sha256((folder / "run.yaml").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with torch.no_grad():
        for loaded in (network_of(folder), robust_train.load(folder / "weights.safetensors")):
            assert torch.equal(loaded(images), before(images))
    assert Subject(str(folder)).shape == (1, 32, 32)


def test_a_checkpoint_without_its_run_is_judged_on_images_that_are_named(study):
    """network.yaml alone, as tools.transform leaves it: classes, shape and the user's modules stand there."""
    recipe = replace(recipe_of(checkpoint.find(study / "runs" / "cnn")), classes=7)
    put(study / "alone", recipe, recipe.build().model.state_dict(), {})
    url = Digits(folder=str(study / "digits")).shards.validation
    subject = Subject(str(study / "alone"), data=str(url))
    assert subject.run is None
    assert subject.threat is None
    data = subject.images()
    assert (data.classes, data.shape) == (7, (1, 32, 32))
    assert list(subject.fingerprints) == [str(study / "alone")]
    assert subject.identity(data)["weights"] == subject.digest
    with pytest.raises(ConfigError, match=r"has no run\.yaml and needs --data"):
        Subject(str(study / "alone")).images()
    with pytest.raises(CheckpointError, match=r"no run\.yaml"):
        Subject(str(study / "digits")).images()


@pytest.mark.parametrize(
    "blueprint",
    [
        replace(BEHIND_V1, group=3, channels_last=True),
        replace(RESNET, edits=(Activations("silu"),), mean=None, std=None),
        Blueprint(Timm("test_resnet", drop_rate=0.1), checkpointing=True),
        Blueprint(Timm("test_vit", patch_size=8), (ConvStem(),), std=(0.3,)),
    ],
)
def test_a_recipe_builds_the_network_that_it_is_of(blueprint, tmp_path):
    torch.manual_seed(0)
    made = blueprint.build(10, (3, 32, 32), "bf16", 2).eval()
    recipe = Recipe.of(blueprint, made, (3, 32, 32))
    put(tmp_path / "kept", recipe, made.model.state_dict(), {})
    assert recipe_of(tmp_path / "kept") == recipe == parse(Recipe, load_tree(dump(recipe)))
    again = network_of(tmp_path / "kept")
    made.settle(precision="fp32")
    assert torch.equal(again.mean.expand(3, 1, 1), made.mean.expand(3, 1, 1))
    assert torch.equal(again.std.expand(3, 1, 1), made.std.expand(3, 1, 1))
    assert (again.stages, again.group, again.channels_last) == (made.stages, 2, made.channels_last)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), made.noise(mode="off"), again.noise(mode="off"):
        assert torch.equal(again(images), made(images))


def test_a_recipe_names_no_file_that_the_model_began_with_and_no_default_of_a_library():
    """timm's own mean and deviation are written out: another version of timm would not move them."""
    model = Timm("resnet18")
    made = Blueprint(model).build(10, (3, 32, 32), "fp32", 4)
    recipe = Recipe.of(Blueprint(replace(model, weights="/nowhere.pth"), checkpointing=True), made, (3, 32, 32))
    assert recipe.network.model == model
    assert (recipe.network.mean, recipe.network.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not recipe.network.checkpointing


def test_a_network_is_rebuilt_without_touching_the_global_generator(small_run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network_of(small_run.parent / "run")
    assert torch.equal(torch.get_rng_state(), before)
