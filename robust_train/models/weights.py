"""Weights of a model from a local file."""

from __future__ import annotations

import pickle
import sys
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


def fit_weights(model: nn.Module, weights: dict[str, Tensor], source: str, classes: int | None = None) -> list[str]:
    """Load weights by name, strictly; the names of the tensors that stay as they are: a head of other classes.

    classes: those of the model, for weights that come from elsewhere. Then tensors whose first size is `classes` here
    and one other number there, and whose other sizes agree, are the head's and begin anew. Where more differs, timm's
    own filter of the model is asked: it resamples position embeddings to another input size, and renames what other
    projects name otherwise. None: exactly the model's own. Raises CheckpointError naming what does not fit.
    """
    head, wrong = _differences(model, weights, classes)
    change = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if wrong and classes is not None and change is not None:
        try:
            weights = change(dict(weights), model)
        except (KeyError, RuntimeError, AttributeError, AssertionError) as error:
            wrong = [str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__]
        else:
            head, wrong = _differences(model, weights, classes)
    if wrong:
        remedy = "Name the run's own checkpoint, or give the run another folder."
        if classes is not None:
            remedy = "Name the model that it was saved from, with its options and edits."
        raise CheckpointError(f"{source} does not fit {_named(model)}: {'; '.join(wrong)}. {remedy}")
    own = model.state_dict()
    model.load_state_dict({**weights, **{name: own[name] for name in head}})
    return head


def _differences(model: nn.Module, weights: dict[str, Tensor], classes: int | None) -> tuple[list[str], list[str]]:
    """The names of a head of other classes; and in words what else is missing, unknown or misshapen."""
    own = model.state_dict()
    shapes = {n: (weights[n].shape, own[n].shape) for n in own if n in weights and weights[n].shape != own[n].shape}
    head = [
        name for name, (there, here) in shapes.items() if there and here[:1] == (classes,) and there[1:] == here[1:]
    ]
    if len({weights[name].shape[0] for name in head}) > 1:
        head = []
    found = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(there)} instead of {tuple(here)}"
            for name, (there, here) in shapes.items()
            if name not in head
        ],
    }
    return head, [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in found.items()
        if names
    ]


def _named(model: nn.Module) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


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
