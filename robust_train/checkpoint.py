"""A checkpoint is a folder, whole or absent: safetensors, text, and a manifest of checksums written last."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robust_train import disk
from robust_train.nouns import Place
from robust_train.read.errors import CheckpointError

Gather = Callable[[Any], list[Any]]
"""One value a rank to the list of all ranks' values, on every rank; also a barrier."""


def write(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str], place: Place, gather: Gather
) -> None:
    """Write a checkpoint: every rank its own tensor files, the leading rank the texts and, last, the manifest.

    Until the manifest is there the folder has another name, so a crash leaves nothing that looks like a checkpoint.
    """
    making = folder.with_name(folder.name + ".making")
    if place.leads:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
    gather(None)
    mine: dict[str, str] = {}
    for name, values in tensors.items():
        held = {key: value.detach().to("cpu").contiguous() for key, value in values.items()}
        _save(held, making / name)
        mine[name] = disk.settle(making / name)
    if place.leads:
        for name, text in texts.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            (making / name).write_text(text, encoding="utf-8")
            mine[name] = disk.settle(making / name)
    checksums: dict[str, str] = {}
    for theirs in gather(mine):
        checksums |= theirs
    if place.leads:
        manifest = {"form": 1, "ranks": place.world, "sha256": dict(sorted(checksums.items()))}
        (making / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        disk.settle(making / "manifest.json")
        disk.sync_folder(making)
        before = folder.with_name(folder.name + ".before")
        if folder.exists():  # of an update that was done again: it stays until the new one stands
            shutil.rmtree(before, ignore_errors=True)
            os.replace(folder, before)
        os.replace(making, folder)
        disk.sync_folder(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    gather(None)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there and unaltered; CheckpointError where one is not."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        named = manifest["sha256"].items()
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no manifest.json. Name a folder such as "
            "runs/NAME/checkpoints/00001000, or a run's folder for its newest."
        ) from None
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}/manifest.json was altered or cut short ({error}). Use an older checkpoint."
        ) from None
    for name, checksum in named:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{folder} lacks {name}, which its manifest lists. Copy the whole folder, or use an older checkpoint."
            )
        if disk.checksum(path) != checksum:
            raise CheckpointError(
                f"{path} is not the file that was saved (its checksum differs). Use an older checkpoint."
            )
    return manifest


def read(folder: Path, kind: str) -> dict[str, Tensor]:
    """All tensors of one kind ("weights", "optimiser", "average"), from whichever ranks' files hold them."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob(f"{kind}*.safetensors")):
        tensors |= load_file(path)
    return tensors


def newest(run_folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder; damaged ones are passed over only if an older one is whole."""
    damaged: list[CheckpointError] = []
    for folder in sorted(saved(run_folder), reverse=True):
        try:
            verify(folder)
            return folder
        except CheckpointError as error:
            damaged.append(error)
    if damaged:
        raise CheckpointError(f"no whole checkpoint in {run_folder}: {damaged[0]} Or delete the folder to begin anew.")
    return None


def saved(run_folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(path for path in (run_folder / "checkpoints").glob("[0-9]*") if path.is_dir() and path.suffix == "")


def best(run_folder: Path) -> Path | None:
    """The checkpoint that did best in validation, if one is kept."""
    path = run_folder / "checkpoints" / "best.json"
    if not path.is_file():
        return None
    folder = path.parent / json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
    return folder if folder.is_dir() else None


def mark_best(run_folder: Path, name: str | None, accuracy: float) -> None:
    """Say in best.json which checkpoint did best. Checkpoints know it too: the file follows what is gone on from."""
    path = run_folder / "checkpoints" / "best.json"
    if name is None:
        path.unlink(missing_ok=True)
    else:
        disk.write_text(path, json.dumps({"checkpoint": name, "accuracy": accuracy}) + "\n")


def prune(run_folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what a kill left half-done."""
    spared = best(run_folder)
    for folder in saved(run_folder)[:-keep]:
        if folder != spared:
            shutil.rmtree(folder, ignore_errors=True)
    for pattern in ("*.making", "*.before"):
        for left in (run_folder / "checkpoints").glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or of a run's folder its best, else its newest."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. Name a run's folder, or one of its checkpoints.")
    if (path / "checkpoints").is_dir():
        found = best(path) or newest(path)
        if found is None:
            raise CheckpointError(f"{path} holds no whole checkpoint yet. Let the run reach its first one.")
        return found
    return path


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors. Raises OSError where the system refuses, as other files do: safetensors says it in words."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
