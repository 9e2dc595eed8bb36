"""Weights of a model from a local file."""

from __future__ import annotations

import argparse
import logging
import pathlib
import pickle
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from robust_train.models.likeness import timm_like
from robust_train.read.errors import CheckpointError, nearest

log = logging.getLogger(__name__)

# where training scripts keep the weights among other things, the averaged ones first: they are what such scripts judge
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "ema_model", "ema", "averaged")
PLAIN = ("state_dict", "model_state_dict", "model", "model_state", "net", "network", "weights", "params")
INSIDE = ("module", "shadow", "shadow_params")  # of an average that is kept with its decay
WITHIN = (*AVERAGED, *PLAIN, *INSIDE)
WRAPPING = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.", "encoder.", "ema_model.")  # by wrappers
HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]  # what lies beside weights, and runs no code


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """{name: tensor} on the CPU from a safetensors file, or a .pth or .pt file of tensors, named as they are there.

    Opens what scripts put around the weights: `state_dict`, `model`, `model_state_dict` and kin, Lightning's too,
    and averages kept beside them (`state_dict_ema`, `model_ema`, ...), which come first; where there was a choice, a
    line of the log says what was taken. Pickled code is never run. Raises CheckpointError for a file that is missing,
    cut off or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_absent(path))
    weights, trail, beside = _opened(_safetensors(path) if path.suffix == ".safetensors" else _pickled(path))
    if not weights:
        raise CheckpointError(
            f"{path}: holds no weights by name. Name a file of tensors: a state dict of safetensors or torch.save."
        )
    if beside:
        log.warning("%s: took the weights in %s; %s lies beside them", path, ".".join(trail), ", ".join(beside))
    return weights


def fit_weights(model: nn.Module, weights: dict[str, Tensor], source: str, classes: int | None = None) -> list[str]:
    """Load weights by name, strictly; the names of the tensors that stay as they are: a head of other classes.

    classes: those of the model, for weights that come from elsewhere. Then what wrappers put before every name
    (`module.`, `_orig_mod.`, `model.`, `backbone.`, or whatever it is) is taken off, and what does not lie there is
    left out: a line of the log says both. Tensors whose first size is `classes` here and one other number there, and
    whose other sizes agree, are the head's and begin anew. Where more differs, timm's own filter of the model is asked:
    it resamples position embeddings to another input size, and renames what other projects name otherwise. None:
    exactly the model's own. Raises CheckpointError naming what does not fit, and the timm model whose shapes these are.
    """
    if classes is not None:
        weights = _bare(weights, model.state_dict(), source)
    head, wrong = _differences(model, weights, classes)
    change = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    given = weights
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
            like = timm_like(given) if type(model).__module__.startswith("timm.") else None
            remedy = f"Its shapes are those of timm's {like}: name that model. " * bool(like)
            remedy += "Name the model that it was saved from, with its options and edits." * (not like)
        raise CheckpointError(f"{source} does not fit {_named(model)}: {'; '.join(wrong)}. {remedy.strip()}")
    own = model.state_dict()
    model.load_state_dict({**weights, **{name: own[name] for name in head}})
    return head


def _bare(weights: dict[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights without what stands before all of the model's own names.

    Of all that ends at a dot, what stands before most of the model's names; an average's (`ema_model.`) before a plain
    one's, then the shortest. Where none of the model's names is found, whatever all names have in common is no help
    either, but for the words of wrappers: timm's filter may know the rest.
    """
    counts: Counter[str] = Counter()
    for name in weights:
        pieces = name.split(".")
        counts.update(
            "".join(f"{piece}." for piece in pieces[:depth])
            for depth in range(len(pieces))
            if ".".join(pieces[depth:]) in own
        )
    before = max(counts, key=lambda prefix: (counts[prefix], "ema" in prefix, -len(prefix)), default="")
    if not counts:
        first = next(iter(weights))
        while (word := first.removeprefix(before).split(".")[0] + ".") in WRAPPING:
            before += word
        before = before if all(name.startswith(before) for name in weights) else ""
    if not before:
        return weights
    left = [name for name in weights if not name.startswith(before)]
    said = f", and leaves out {len(left)} ({', '.join(left[:3])}{', ...' if len(left) > 3 else ''})" if left else ""
    log.warning("%s: takes %r off the names of its weights%s", source, before, said)
    return {name.removeprefix(before): tensor for name, tensor in weights.items() if name.startswith(before)}


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
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f"of {named[1]}, among others" if named else str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: holds more than tensors ({what}), or is no weights file. Code in a file is never run: save the "
            "weights alone, torch.save(model.state_dict(), ...), or as safetensors."
        ) from error
    except (EOFError, BadZipFile, RuntimeError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: is no whole file of torch.save ({type(error).__name__}: {error}); copy it again"
        ) from error


def _opened(found: Any) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(tensors by name, where they lay, what else there holds tensors)."""
    trail: list[str] = []
    beside: list[str] = []
    while isinstance(found, Mapping):
        inner = [key for key in WITHIN if isinstance(found.get(key), Mapping) and _holds(found[key])]
        if not inner:
            tensors = {name: value for name, value in found.items() if isinstance(name, str)}
            return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}, trail, beside
        trail.append(inner[0])
        beside += inner[1:]
        found = found[inner[0]]
    return {}, trail, beside


def _holds(found: Any) -> bool:
    """Whether there are tensors by name in it, at some depth."""
    if not isinstance(found, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in found.values()) or any(
        _holds(found[key]) for key in WITHIN if key in found
    )
