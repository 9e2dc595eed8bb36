"""From Python: any module, images and labels to a report, in one call.

report = robust_train.evaluate(module, images, labels, threats={"linf": 8 / 255}, attack="autoattack")
print(report)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from robust_train.attacks import given
from robust_train.attacks.given import paired, pixels
from robust_train.door import identity
from robust_train.door.named import evaluation_of, threats_of
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.adversarial_sets import chosen
from robust_train.evaluate.given import Images
from robust_train.evaluate.report import COSTS, Report
from robust_train.evaluate.store import Store
from robust_train.evaluate.trial import worst
from robust_train.evaluate.work import Tell, silent
from robust_train.evaluate.work import evaluate as found_by
from robust_train.models.foreign import moded
from robust_train.nouns import Dataset, Place
from robust_train.read.errors import ConfigError, InputError
from robust_train.read.parse import parse


def evaluate(
    module: Any,
    images: Any = None,
    labels: Any = None,
    *,
    data: Dataset | Mapping[str, Any] | str | None = None,
    threats: Any = None,
    attack: Any = "pgd",
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    curve: int = 0,
    checks: int = 100,
    sees: float | None = None,
    limit: int | None = None,
    batch: int = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    points: bool = False,
    device: str | torch.device | None = None,
    tell: Tell = silent,
) -> Report:
    """How well `module` holds: its accuracy on clean images and under attack, with intervals, per class, with flags.

    module: any nn.Module (or function) from images [B, ...] in [0, 1] to logits [B, C]; normalisation belongs inside.
    It is judged in eval mode and float32 and left as it was.
    images, labels: [N, ...] floats in [0, 1] and [N] whole numbers; tensors or arrays. Or
    data: a data set by value, name or fields ("digits", {"use": "imagenet", ...}): its validation images.
    threats: {"linf": 8 / 255}, {"linf": 8 / 255, "l2": 0.5} (and their union), Linf(8 / 255), or a list.
    attack: a name (`python -m robust_train --list attacks`; "pgd", "autoattack", "cr", "apgd-ce", ... with their usual
        settings), fields ({"use": "apgd", "targets": 9}), an Attack, a function (module, images, labels) -> points, or
        a list of any: then each attacks by itself every image that is right, and the worst counts.
    steps, step_size, restarts: of attacks by name, in place of the usual. curve: points of accuracy against eps;
        checks: images on which further attacks look for a flattered figure (0: none), the first of them.
        sees: the share of flattered images that they have to see, such as 1 / 400, on as many images as that needs.
    limit: the first so many images. batch: images attacked together. seed: of everything drawn.
    folder: where verdicts are kept, keyed by the module's weights and code, images, labels and all that was asked: the
        same call goes on where it was killed, any other begins anew. None: nothing is written.
    points: keep the adversarial images: `report.adversarial`.

    Every verdict is a fresh float32 forward. A point that is not finite, not in [0, 1] or outside the threat model
    counts for nothing; of an attack of ours that is an error, of a function a flag of the report. Costs the attacks'
    forward and backward passes, which the report counts. Raises ConfigError for what cannot be judged, with the remedy.
    """
    device = _device(module, device)
    own = _data(module, images, labels, data, device)
    asked = () if threats is None else threats_of(threats)
    code = (lambda call: "") if folder is None else identity.of_function
    options = {"curve": curve, "checks": checks, "sees": sees, "images": limit, "chunk": batch}
    options |= {"points": points}
    evaluator = evaluation_of(attack, asked, steps, step_size, restarts, code, **options)
    store = None if folder is None else Store(Path(folder).expanduser(), {"": identity.of_network(module)})
    found = found_by(evaluator, {"": module}, own, seed, device, store, tell=tell)
    report = evaluator.report(found)
    verdicts, plan, _ = evaluator.read(found)
    shares = {"clean": verdicts.columns["clean"].right}
    for tag, _ in evaluator.tagged:
        row = plan.of("attack", tag)
        names = [figure.title for figure in report.figures if figure.threat == tag]
        shares |= {name: verdicts.columns[trial.name].right for name, trial in zip(names, row, strict=False)}
        shares[names[-1]] = worst([verdicts.columns[trial.name] for trial in row])[0]
    if len(evaluator.tagged) > 1:
        every = [verdicts.columns[trial.name] for tag, _ in evaluator.tagged for trial in plan.of("attack", tag)]
        shares["union"] = worst(every)[0]
    spent = {
        trial.name: {
            name: of for name in (*COSTS, "steps") if (of := getattr(verdicts.columns[trial.name], name)) is not None
        }
        for trial in plan.trials
        if trial.role == "attack"
    }
    kept = {tag: chosen(evaluator, found, tag) for tag, _ in evaluator.tagged} if points else {}
    told = tuple(own.preprocessing()) if isinstance(own, Dataset) else ()
    return replace(report, names=tuple(own.names()), preprocessing=told, right=shares, spent=spent, points=kept)


def _device(module: Any, device: Any) -> str:
    """Where it runs: where the module lies."""
    if device is not None:
        return str(device)
    tensors = (*module.parameters(), *module.buffers()) if isinstance(module, nn.Module) else ()
    return str(tensors[0].device) if tensors else "cpu"


def _data(module: Any, images: Any, labels: Any, data: Any, device: str) -> Dataset:
    """What it is judged on. Raises ConfigError for what cannot be images and labels, before any work."""
    if (images is None) == (data is None) or (labels is None) != (images is None):
        raise ConfigError("give images and labels, or data=..., one of them")
    if data is not None:
        found: Dataset = (
            data if not isinstance(data, (str, Mapping)) else parse(Dataset, data, "data", "what was asked")
        )
        if hasattr(found, "prepare"):
            found.prepare()
        first = next(iter(found.validation_batches(Place(), 2, 2)))[:2].to(device)
        _logits(module, first.images)
        return found
    images, labels = _tensor(images, "images"), _tensor(labels, "labels")
    images = pixels(images)
    if not len(images):
        raise InputError("there are no images to judge: give one or more, [N, ...]")
    labels = paired(labels.cpu(), images.cpu())
    if labels.dim() == 2:
        raise InputError(f"labels have the shape {list(labels.shape)}: an evaluation takes classes [N], one an image")
    classes = _logits(module, images[:2].to(device)).shape[1]
    labels = given.labels(labels, images.cpu(), classes)
    made: Any = Images(images.detach().float().cpu(), labels, classes)
    return made


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(numpy.array(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: {type(value).__name__} is no tensor and no array ({error})") from None


def _logits(module: Any, images: Tensor) -> Tensor:
    """The answers to some images. Raises ConfigError for what are no logits [B, C] of two classes or more."""
    network = moded(module)
    with judged(network), torch.no_grad():
        return network(images.float())
