"""Weights from local files: tensors by name, or one message that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robust_train.models.weights import read_weights
from robust_train.read.errors import CheckpointError

WEIGHTS = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state"])
def test_what_scripts_put_around_weights_is_taken_off(tmp_path: Path, prefix: str, key: str | None) -> None:
    weights = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    path = tmp_path / "weights.pth"
    torch.save(weights if key is None else {key: weights, "epoch": 7}, path)
    assert same(read_weights(path))


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
