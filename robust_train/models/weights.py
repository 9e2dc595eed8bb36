"""Weights of a model from a local file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from robust_train.read.errors import CheckpointError, nearest

WRAPPERS = ("state_dict", "model", "model_state")  # where training scripts keep the weights among other things
PREFIXES = ("module.", "model.")  # put before every name by data parallelism and by wrappers


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """{name: tensor} on the CPU from a safetensors file, or from a .pth or .pt file of tensors.

    Unwraps what scripts put around the weights (`state_dict:`, `model:`, names that all begin with `module.` or
    `model.`). Pickled code is never run. Raises CheckpointError for a file that is missing, cut off or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_absent(path))
    found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    weights = _unwrapped(found)
    if not weights:
        raise CheckpointError(
            f"{path}: holds no weights by name. Name a file of tensors: a state dict of safetensors or torch.save."
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def fit_weights(model: nn.Module, weights: dict[str, Tensor], source: str, new: dict[str, Tensor]) -> None:
    """Load weights by name; those in `new` come first. CheckpointError names what is missing, unknown or misshapen."""
    own = model.state_dict()
    offered = {**weights, **new}
    found = {
        "missing": [name for name in own if name not in offered],
        "unknown": [name for name in offered if name not in own],
        "of another shape": [
            f"{name} {tuple(offered[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in offered and offered[name].shape != own[name].shape
        ],
    }
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in found.items()
        if names
    ]
    if wrong:
        raise CheckpointError(
            f"{source} holds another model than the run's: {'; '.join(wrong)}. Name the run's own checkpoint, or give "
            "the run another folder."
        )
    model.load_state_dict(offered)


def _absent(path: Path) -> str:
    if path.is_dir():
        return f"{path}: is a folder; name a .safetensors, .pth or .pt file in it"
    beside = sorted(file.name for file in path.parent.iterdir() if file.is_file()) if path.parent.is_dir() else []
    return f"{path}: no such weights file{nearest(path.name, beside)}; nothing is fetched, so put the file there first"


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no whole safetensors file ({error}); copy it again") from error


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: holds more than tensors, or is no weights file ({first}). Code in a file is never run: save the "
            "weights alone, torch.save(model.state_dict(), ...), or as safetensors."
        ) from error
    except (EOFError, BadZipFile, RuntimeError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: is no whole file of torch.save ({type(error).__name__}: {error}); copy it again"
        ) from error


def _unwrapped(found: Any) -> dict[str, Tensor]:
    while isinstance(found, Mapping):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            tensors = {name: value for name, value in found.items() if isinstance(name, str)}
            return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        found = inner
    return {}
