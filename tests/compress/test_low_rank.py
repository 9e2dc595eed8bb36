"""An edit and a transform, from a checkpoint through save, load, train on, evaluate and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import robust_train
from robust_train.__main__ import main as train
from robust_train.compress.low_rank import LowRank, Svd, cut, factors
from robust_train.keyed import Key
from robust_train.models.blueprint import Blueprint
from robust_train.models.small_cnn import SmallResNet
from robust_train.models.timm import Timm
from robust_train.nouns import Edit, Model
from robust_train.read.errors import CheckpointError, ConfigError
from robust_train.run import Run
from robust_train.tools.convert import main as convert
from robust_train.tools.eval import main as evaluate
from robust_train.tools.transform import main as transform
from robust_train.trained import recipe_of

MODELS: dict[str, Model] = {
    "small-resnet": SmallResNet(),
    "test_resnet": Timm("test_resnet"),
    "test_vit": Timm("test_vit", patch_size=8),
}


def network(model: Model, *edits: Edit) -> Any:
    """In float64 and eval mode, with running statistics that are not those of the start."""
    torch.manual_seed(0)
    made = Blueprint(model, edits, group=2).build(10, (3, 32, 32), "fp32", 4).double()
    for name, value in made.model.state_dict().items():
        if "running" in name:
            value.copy_(torch.rand_like(value) + 0.5)
    return made.eval()


def never() -> Any:
    raise AssertionError("no image was to be read")
    yield


# -- the edit and the transform ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_the_network_is_the_same(name: str) -> None:
    """W = U V: every layer of it, in float64 to rounding; and what it was made from is as it was."""
    plain = network(MODELS[name])
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    edit, weights = Svd(share=1.0)(plain, never(), Key(0))
    other = network(MODELS[name], edit)
    other.model.load_state_dict(weights)
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_close(other(images), plain(images), rtol=1e-10, atol=1e-10)
    assert set(edit.ranks) == set(factors(plain.model))
    assert all(torch.equal(value, before[name]) for name, value in plain.model.state_dict().items())


def test_what_is_cut_off_is_what_the_singular_values_say() -> None:
    """Eckart and Young: |W - U V|^2 is the sum of the squared singular values left out, and no product is nearer."""
    weight = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(weight)
    for rank in range(1, 6):
        outer, inner = cut(weight, rank)
        assert (outer.shape, inner.shape) == ((7, rank), (rank, 5))
        assert_close((weight - outer @ inner).square().sum(), values[rank:].square().sum())
        assert_close(outer.T @ outer, inner @ inner.T)  # the two share the scale


def test_a_stride_and_a_bias_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Flatten(), nn.Linear(4 * 16, 5, bias=False)).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    wanted, weights = model(images), model.state_dict()
    LowRank({"0": 3, "2": 5})(model, (3, 8, 8), 5)
    for name in ("0", "2"):
        outer, inner = cut(weights[f"{name}.weight"], {"0": 3, "2": 5}[name])
        model.get_submodule(f"{name}.0").weight.data, model.get_submodule(f"{name}.1").weight.data = inner, outer
    model.get_submodule("0.1").bias.data = weights["0.bias"]
    assert_close(model(images), wanted)
    assert model.get_submodule("2.1").bias is None


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ({"rank": 3}, {"block2.shortcut": 3, "block3.shortcut": 3, "head": 3}),
        ({"rank": 1000}, {"block2.shortcut": 32, "block3.shortcut": 64, "head": 10}),
        ({"share": 0.25}, {"block2.shortcut": 8, "block3.shortcut": 16, "head": 3}),
        ({"share": 0.001, "layers": ("head",)}, {"head": 1}),
    ],
)
def test_ranks_are_as_asked_for(said: dict[str, Any], ranks: dict[str, int]) -> None:
    edit, _ = Svd(**said)(network(SmallResNet()), never(), Key(0))
    assert edit == LowRank(ranks)


def test_what_cannot_be_is_refused_with_the_remedy() -> None:
    plain = network(SmallResNet())
    with pytest.raises(ConfigError, match=r"transform\.layers: 'haed' is no linear .*; did you mean 'head'"):
        Svd(rank=2, layers=("haed",))(plain, never(), Key(0))
    for ranks, said in (
        ({"haed": 2}, r"edits\[0\] \(low-rank\): 'haed' is no layer of Chain; did you mean 'head'"),
        ({"stem": 2}, r"stem \(Conv2d\) is no linear layer and no 1x1 convolution"),
        ({"head": 11}, r"head is 10 x 128, so its rank is 10 at most, not 11"),
    ):
        with pytest.raises(ConfigError, match=said):
            network(SmallResNet(), LowRank(ranks))
    for wrong in ({}, {"rank": 2, "share": 0.5}, {"rank": 0}, {"share": 1.5}):
        with pytest.raises(ValueError, match=r"rank|share"):
            Svd(**wrong)
    with pytest.raises(ValueError, match="changes nothing"):
        LowRank({})


# -- a checkpoint all the way ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small run at full rank, and cut to a quarter."""
    folder = tmp_path_factory.mktemp("compressed")
    run = str(small_run.parent / "run")
    for name, by in {"full": "{use: svd, share: 1.0}", "quarter": "{use: svd, share: 0.25}"}.items():
        transform([run, str(folder / name), "--by", by])
    return {name: folder / name for name in ("full", "quarter")} | {"run": small_run.parent / "run"}


def test_a_transformed_checkpoint_loads_as_any_other(compressed: dict[str, Path]) -> None:
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        plain, full, quarter = (robust_train.load(compressed[name])(images) for name in ("run", "full", "quarter"))
    assert_close(full, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(quarter, plain, atol=1e-3)
    recipe = recipe_of(compressed["quarter"])
    assert recipe.network.edits == (LowRank({"head": 3}),)
    assert Run.load(compressed["quarter"] / "run.yaml").network.edits == recipe.network.edits
    said = json.loads((compressed["quarter"] / "transform.json").read_text())
    assert said["transform"] == {"use": "svd", "rank": None, "share": 0.25, "layers": None}
    assert Path(said["checkpoint"]).parent.parent == compressed["run"]


def test_it_is_evaluated_as_any_other(compressed: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for name in ("run", "full"):
        words = [str(compressed[name]), "--attack", "pgd", "--steps", "2", "--images", "64", "--checks", "0"]
        evaluate([*words, "--json", str(tmp_path / f"{name}.json")])
        found.append([f["accuracy"] for f in json.loads((tmp_path / f"{name}.json").read_text())["figures"]])
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_it_is_trained_on_from_where_it_stands_and_its_checkpoints_have_its_structure(
    compressed: dict[str, Path], tmp_path: Path
) -> None:
    start = compressed["quarter"]
    settings = [f"start={start}", f"folder={tmp_path / 'on'}", "updates=2", "optimiser.lr=0", "checkpoint.every=1"]
    train([str(start / "run.yaml"), *settings, "average=null"])
    on = robust_train.load(tmp_path / "on")
    assert recipe_of(tmp_path / "on" / "checkpoints" / "00000002").network == recipe_of(start).network
    there = robust_train.load(start)
    for name, value in on.model.named_parameters():  # a rate of 0: it began where the transform ended
        assert torch.equal(value, there.model.get_parameter(name)), name


def test_it_is_exported_as_any_other(compressed: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "quarter.pt2"
    convert([str(compressed["quarter"]), "--to", "export", "--out", str(out)])
    convert([str(compressed["quarter"]), "--to", "timm", "--out", str(tmp_path / "folder")])
    images = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        wanted = robust_train.load(compressed["quarter"])(images)
        assert_close(torch.export.load(out).module()(images), wanted, rtol=1e-4, atol=1e-5)


def test_a_place_that_is_taken_and_an_unknown_transform_are_refused(
    compressed: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, taken = str(compressed["run"]), str(compressed["full"])
    for words, said in (
        ([run, taken, "--by", "{use: svd, rank: 2}"], "is there already: name another folder"),
        ([run, str(tmp_path / "x"), "--by", "{use: swd, rank: 2}"], "did you mean 'svd'"),
        ([run, str(tmp_path / "x"), "--by", "{use: svd}"], "name one of rank and share"),
    ):
        with pytest.raises(SystemExit) as refused:
            transform(words)
        assert refused.value.code == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_altered_result_is_refused_as_any_other(compressed: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(compressed["full"], tmp_path / "altered")
    text = (folder / "network.yaml").read_text()
    (folder / "network.yaml").write_text(text.replace("classes: 10", "classes: 11"))
    with pytest.raises(CheckpointError, match=r"network\.yaml is not the file that was saved"):
        robust_train.load(folder)
