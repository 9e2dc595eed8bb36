"""Weights from local files: tensors by name, or one message that says what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robust_train.models import likeness
from robust_train.models.timm import Timm
from robust_train.models.weights import _bare, fit_weights, read_weights
from robust_train.read.errors import CheckpointError

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


CONTAINERS = ["state_dict", "model", "model_state", "model_state_dict", "state_dict_ema", "model_ema", "net"]
PREFIXES = ["module.", "model.", "module.model.", "_orig_mod.module.", "backbone.", "network.", "lit.0.student."]


def told(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("key", [None, *CONTAINERS])
def test_what_scripts_put_around_weights_is_opened(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "weights.pth"
    args = argparse.Namespace(lr=0.1, data=Path("data"))
    torch.save(WEIGHTS if key is None else {key: WEIGHTS, "epoch": 7, "optimizer": {"state": {}}, "args": args}, path)
    assert same(read_weights(path))


@pytest.mark.parametrize("average", [{"state_dict_ema": WEIGHTS}, {"ema": {"module": WEIGHTS, "decay": 0.9}}])
def test_an_average_that_is_kept_beside_is_taken_and_said(tmp_path: Path, caplog, average: dict) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {name: 0 * tensor for name, tensor in WEIGHTS.items()}, **average}, path)
    assert same(read_weights(path))
    assert next(iter(average)) in told(caplog)
    assert "state_dict lies beside" in told(caplog)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_names_is_taken_off_and_said(caplog, prefix: str) -> None:
    """Also where other tensors lie beside them: a normaliser's, a count of averages, a loss's, a copy for attacks."""
    one, other = model(), model()
    weights = {prefix + name: tensor for name, tensor in one.state_dict().items()}
    weights |= {
        "n_averaged": torch.tensor(3),
        "normalizer.mean": torch.ones(3),
        "attacker.model.0.bias": torch.ones(3),
    }
    assert fit_weights(other, weights, "file.pth", 4) == []
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())
    assert f"takes {prefix!r} off" in told(caplog)
    assert "leaves out 3 (n_averaged, normalizer.mean, attacker.model.0.bias)" in told(caplog)


def test_of_two_networks_in_one_file_the_average_is_taken() -> None:
    one, other = model(), model()
    weights = {f"online_model.{name}": 0 * value for name, value in one.state_dict().items()}
    weights |= {f"ema_model.{name}": value for name, value in one.state_dict().items()}
    fit_weights(other, weights, "file.pth", 4)
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())


def test_of_a_run_s_own_checkpoint_nothing_is_taken_off() -> None:
    weights = {f"module.{name}": value for name, value in model().state_dict().items()}
    with pytest.raises(CheckpointError, match="missing"):
        fit_weights(model(), weights, "file")


def test_names_that_timm_s_filter_knows_lose_their_wrapper_first() -> None:
    """Other projects' files are named otherwise than timm's; here no name is one of the model's."""
    weights = {"module.backbone.x.weight": torch.ones(2), "module.backbone.x.bias": torch.ones(2)}
    assert list(_bare(weights, {"y": torch.ones(1)}, "file")) == ["x.weight", "x.bias"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "asked"), [("resnet34", "resnet18"), ("vit_tiny_patch16_224", "test_vit")])
def test_weights_of_another_timm_model_are_told_which(monkeypatch, name: str, asked: str) -> None:
    monkeypatch.setattr(likeness, "SECONDS", 600.0)
    other, own = (Timm(model).build(classes, (3, 224, 224)) for model, classes in ((name, 7), (asked, 5)))
    weights = {f"module.{key}": value for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"Its shapes are those of timm's {name}: name that model"):
        fit_weights(own, weights, "file", 5)


def test_what_a_refusal_quotes_has_no_terminal_codes(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"Code in a file is never run") as refused:
        read_weights(tmp_path / "whole.pth")
    assert "\x1b" not in str(refused.value)
    assert "torch.nn.modules.linear.Linear" in str(refused.value)
    assert str(CheckpointError("\x1b[31mred\x1b[0m and plain")) == "red and plain"


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert same(read_weights(tmp_path / "weights.safetensors"))


def test_a_name_that_only_some_tensors_begin_with_is_kept(tmp_path: Path) -> None:
    torch.save({"model.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights.pt")
    assert list(read_weights(tmp_path / "weights.pt")) == ["model.a", "b"]


def test_a_missing_file_is_told_with_the_nearest_beside_it(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "resnet50.safetensors")
    with pytest.raises(CheckpointError, match=r"no such weights file; did you mean 'resnet50.safetensors'"):
        read_weights(tmp_path / "resnet5O.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_told(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(WEIGHTS, path)
    else:
        save_file(WEIGHTS, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=f"{name}: .*(copy it again|save the weights alone)"):
        read_weights(path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_something_else_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("name: not weights\n")
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match="Code in a file is never run"):
        read_weights(tmp_path / "module.pth")


def test_a_file_without_tensors_is_told(tmp_path: Path) -> None:
    for found in ({"epoch": 3}, [1, 2], torch.ones(3)):
        torch.save(found, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match="holds no weights by name"):
            read_weights(tmp_path / "weights.pth")


# -- weights in a model ------------------------------------------------------------------------------


def model(classes: int = 4, width: int = 3) -> nn.Sequential:
    """A layer, a norm and a head."""
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, classes))


def test_weights_that_fit_are_loaded_whole() -> None:
    one, other = model(), model()
    assert fit_weights(other, one.state_dict(), "file") == fit_weights(other, one.state_dict(), "file", 4) == []
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_head_for_other_classes_stays_as_it_was_and_is_named_where_weights_come_from_elsewhere() -> None:
    one, other = model(classes=7), model()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"file does not fit Sequential: 2 of another shape \(2\.weight \(7, 3\)"):
        fit_weights(other, one.state_dict(), "file")
    assert fit_weights(other, one.state_dict(), "file", 4) == ["2.weight", "2.bias"]
    for name, value in other.state_dict().items():
        assert torch.equal(value, (before if name.startswith("2.") else one.state_dict())[name]), name


def test_layers_as_wide_as_there_are_classes_are_no_heads() -> None:
    """3 classes, and a layer of 3: what is of width 5 there is another model, and no head of 5 classes."""
    with pytest.raises(CheckpointError, match=r"of another shape \(.*2\.weight \(3, 5\) instead of \(3, 3\)"):
        fit_weights(model(classes=3), model(classes=3, width=5).state_dict(), "file", 3)
    with pytest.raises(CheckpointError, match="of another shape"):  # two heads of two numbers of classes
        fit_weights(
            model(classes=3), {**model(3).state_dict(), "2.bias": torch.ones(5), "0.bias": torch.ones(7)}, "f", 3
        )


def test_what_does_not_fit_is_named_with_the_remedy() -> None:
    weights = model().state_dict()
    weights["3.weight"] = weights.pop("2.weight")
    for classes, remedy in ((None, "Name the run's own checkpoint"), (4, "Name the model that it was saved from")):
        with pytest.raises(CheckpointError, match=rf"1 missing \(2.weight\); 1 unknown \(3.weight\)\. {remedy}"):
            fit_weights(model(), weights, "file", classes)
