"""What an attack or an evaluation is given, looked at once where it comes in; and the points that count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.models.foreign import Foreign, plainly
from robust_train.models.network import Moded
from robust_train.nouns import Attack, Threat, number
from robust_train.read.errors import InputError, NumericsError

ROUNDING = 1e-5  # how far beyond [0, 1] a pixel may lie by rounding; it is clipped
FAR = 1e-5, 1e-7  # how far beyond eps a point may lie by rounding: a share of eps, and pixels


def pixels(images: Any) -> Tensor:
    """Images [B, ...] with all pixels in [0, 1], as they are; those beyond by rounding (1e-5) clipped, in a copy.

    Raises InputError with the remedy for anything else: normalised, 0 to 255, integers, half precision, not finite.
    Costs a read of the device.
    """
    images = shaped(images)
    if not images.numel():
        return images
    low, high = torch.stack([images.detach().amin(), images.detach().amax()]).double().tolist()
    if low >= 0 and high <= 1:
        return images
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return images.clamp(0, 1)
    if not (low > -torch.inf and high < torch.inf):
        raise InputError("images hold pixels that are not finite (nan or inf): give pixels in [0, 1]")
    seen = f"images hold pixels from {low:.4g} to {high:.4g}, and eps is measured in [0, 1]"
    if low >= 0 and high > 16:
        raise InputError(f"{seen}: divide them by {255 if high <= 255 else f'{high:g}'}")
    if low < -ROUNDING:
        raise InputError(
            f"{seen}. They look normalised: give pixels in [0, 1], and put the normalisation into the network, "
            "lambda images: model((images - mean) / std)"
        )
    raise InputError(f"{seen}: scale them, or clip what an interpolation overshot: images.clamp(0, 1)")


def shaped(images: Any) -> Tensor:
    """Images as a float tensor [B, ...]; InputError for anything else. Reads nothing of the device."""
    if not isinstance(images, Tensor):
        raise InputError(f"images are a {type(images).__name__}: give a tensor [B, ...] of pixels in [0, 1]")
    if images.dim() < 2:
        raise InputError(f"images have the shape {list(images.shape)}: give [B, ...], a single one as images[None]")
    if images.dtype in (torch.float32, torch.float64):
        return images
    if images.is_floating_point():
        raise InputError(f"images are {images.dtype}, whose steps near 1 are as wide as eps: give images.float()")
    raise InputError(f"images are {images.dtype}: give pixels in [0, 1], images.float() / 255 for grey levels")


def paired(targets: Any, images: Tensor) -> Tensor:
    """Labels [B] int64, or distributions [B, C >= 2], as far as shapes tell; InputError for anything else."""
    count = len(images)
    if not isinstance(targets, Tensor):
        raise InputError(f"labels are a {type(targets).__name__}: give a tensor [B] of integers, or [B, C] of shares")
    if targets.device != images.device:
        raise InputError(f"labels are on {targets.device}, images on {images.device}: move them, labels.to(...)")
    if targets.dim() == 2 and targets.shape[1] == 1:
        raise InputError(
            f"labels have the shape {list(targets.shape)}: give [B], labels.squeeze(1); [B, 1] would be shares of one "
            "class"
        )
    if targets.dim() not in (1, 2) or len(targets) != count:
        raise InputError(
            f"labels have the shape {list(targets.shape)} beside {count} images: give labels [B], or shares of the "
            "classes [B, C]"
        )
    if targets.dim() == 2:
        return targets
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError(f"labels [B] are {targets.dtype}: give integers, labels.long()")
    return targets.long()


def labels(targets: Any, images: Tensor, classes: int | None = None) -> Tensor:
    """Labels [B] int64 from 0 to C - 1, or distributions [B, C]; classes: C, None: not known.

    Raises InputError with the remedy for anything else. Costs a read of the device.
    """
    targets = paired(targets, images)
    if not targets.numel():
        return targets
    if targets.dim() == 2:
        if classes is not None and targets.shape[1] != classes:
            raise InputError(
                f"labels are shares of {targets.shape[1]} classes, and the network has {classes}: give shares [B, C]"
            )
        sums = targets.double().sum(1)
        least, off = torch.stack([targets.double().amin(), (sums - 1).abs().amax()]).tolist()
        if not (least >= 0 and off <= 1e-3):
            raise InputError(
                f"labels [B, C] are no shares of the classes: the least is {least:.4g}, and rows are up to {off:.4g} "
                "from summing to 1; give labels [B], or targets / targets.sum(1, keepdim=True)"
            )
        return targets
    low, high = torch.stack([targets.amin(), targets.amax()]).tolist()
    if low < 0 or (classes is not None and high >= classes):
        most = "" if classes is None else f" to {classes - 1}"
        raise InputError(f"labels run from {low} to {high}: labels are classes, from 0{most}, one an image")
    return targets


def radii(threats: Sequence[Threat]) -> None:
    """InputError where an eps is no number that a ball could have."""
    for threat in threats:
        eps = number(getattr(threat, "eps", 0.0))
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0:
            raise InputError(f"eps={eps!r} of {threat.use} is no radius: give a number from 0 on, such as 8/255")


def counted(name: str, threats: Sequence[Threat], images: Tensor, points: Any) -> tuple[Tensor, Tensor]:
    """(points that may count [B, ...], [B] bool whether a row was not finite): such rows are the images again.

    threats: one of which each point must lie in. Raises NumericsError where a point is of another shape, outside [0, 1]
    or outside the threat models by more than rounding: the attack is wrong. Costs a read of the device.
    """
    if not isinstance(points, Tensor) or points.shape != images.shape:
        told = f"a tensor {list(points.shape)}" if isinstance(points, Tensor) else f"a {type(points).__name__}"
        raise NumericsError(f"{name} gave {told} for images {list(images.shape)}: an attack gives one point an image")
    points = points.detach().to(images)
    broken = ~finite(points)
    points = torch.where(wide(broken, points), images, points)
    if not points.numel():
        return points, broken
    far = [threat.distance(images, points) for threat in threats]
    most = [number(threat.eps) for threat in threats]  # type: ignore[attr-defined]
    beyond = torch.stack([one - eps * (1 + FAR[0]) - FAR[1] for one, eps in zip(far, most, strict=True)]).amin(0)
    worst = beyond.argmax()
    seen = torch.stack([beyond[worst], points.amin(), points.amax(), *(one[worst] for one in far)]).tolist()
    if seen[0] > 0 or seen[1] < 0 or seen[2] > 1:
        lies = " and ".join(
            f"{one:.6g} ({threat.use}, where {eps:.6g} is allowed)"
            for one, threat, eps in zip(seen[3:], threats, most, strict=True)
        )
        raise NumericsError(
            f"{name}: a point lies {lies} from its image, its pixels from {seen[1]:.4g} to {seen[2]:.4g} where [0, 1] "
            "is allowed. The attack is wrong, and none of its verdicts can be used."
        )
    return points, broken


def sloped(slope: Tensor) -> Tensor:
    """A gradient for the images, with 0 where it is not finite: the attack goes on by the other entries. It is counted.

    A root at black, a division by 0 within a norm: there one entry would make the whole point NaN.
    """
    kept = slope.nan_to_num(0.0, 0.0, 0.0)
    faults = _faults.get()
    if faults is not None:
        faults.see(slope)
    return kept


class Faults:
    """What is counted within `counting`, without a read of the device: images' gradients, and those not all finite."""

    def __init__(self) -> None:
        self.slopes = 0
        self.lost: Tensor | None = None
        self.broken: Tensor | bool = False  # [B] of the last call: whose point was not finite

    def see(self, slope: Tensor) -> None:
        lost = (~finite(slope)).sum()
        self.slopes += len(slope)
        self.lost = lost if self.lost is None else self.lost + lost

    @property
    def share(self) -> float:
        """Of the gradients that were not all finite. Reads the device."""
        return 0.0 if self.lost is None else float(self.lost) / max(1, self.slopes)


_faults: ContextVar[Faults | None] = ContextVar("faults", default=None)


@contextmanager
def counting() -> Iterator[Faults]:
    """Count the gradients of attacks that are not finite."""
    faults = Faults()
    token = _faults.set(faults)
    try:
        yield faults
    finally:
        _faults.reset(token)


def finite(points: Tensor) -> Tensor:
    """[B] bool: whether all of a row is a number."""
    return points.isfinite().flatten(1).all(1)


def wide(rows: Tensor, like: Tensor) -> Tensor:
    """[b] as [b, 1, 1, ...], to be taken with tensors such as `like`."""
    return rows.view(-1, *[1] * (like.dim() - 1))


_inside: ContextVar[bool] = ContextVar("inside", default=False)


def entered(
    method: Callable[..., Any],
    attack: Attack,
    network: Any,
    images: Any,
    targets: Any,
    key: Any,
    *more: Any,
    **named: Any,
) -> Any:
    """A public method of an attack on what the caller gave, once looked at; attacks within attacks are trusted.

    Every attack's `__call__`, `search` and `nearest` go through here (`Attack.__init_subclass__`): inputs are refused
    with the remedy, modules and functions that are not ours become `Foreign`, what the caller is inside of (autocast,
    inference_mode) ends, the images are not written to, and what comes back is a point that may count, without a graph.
    A network of ours in train mode is being trained: there shapes alone are looked at, and nothing is read.
    """
    if _inside.get():
        return method(attack, network, images, targets, key, *more, **named)
    images = shaped(images)
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), plainly(images.device):
        images, targets = _owned(images), _owned(paired(targets, images))
        trusted = isinstance(network, Moded) and network.training
        if not trusted:
            radii(attack.reach())
            images = pixels(images)
            targets = labels(targets, images, getattr(network, "classes", None) if isinstance(network, Moded) else None)
        network = network if isinstance(network, Moded) else Foreign(network, _spoken(targets))
        with _alone():
            found = method(attack, network, images, targets, key, *more, **named)
        if method.__name__ != "__call__":
            return found
        points = found
        if not trusted and not attack.a_stranger_s:
            points, broken = counted(attack.label, attack.reach(), images, found)
            faults = _faults.get()
            if faults is not None:
                faults.broken = broken
        return points.clone() if points is images else points.detach()


@contextmanager
def _alone() -> Iterator[None]:
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def _owned(tensor: Tensor) -> Tensor:
    """Without a graph; one made in inference mode as a copy, which a graph may hold."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_inference() else tensor


def _spoken(targets: Tensor) -> int:
    """Of how many classes the labels speak."""
    if not targets.numel():
        return 2
    return targets.shape[1] if targets.dim() == 2 else int(targets.amax()) + 1


Towards = int | tuple[int, ...] | None
"""One class for all images, or one for each; None: the attack chooses. A tensor or list [N] is made a tuple.

An image's place is its row in the key: its place in the data set in an evaluation, in the batch where the key names no
rows. An image whose label it is is left as it is.
"""


def classes_of(value: Any) -> Towards:
    """What a caller said, as it is kept. Raises ValueError for what is no class and no list of classes."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value.tolist()
    several = isinstance(value, (list, tuple))
    for one in value if several else [value]:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise ValueError(f"towards={one!r} is no class: give a number from 0, or one for each image")
    return tuple(value) if several else value


def aimed(towards: int | tuple[int, ...], key: Key, labels: Tensor, classes: int) -> Tensor:
    """[b] the class of each image, by the rows that the key names. Raises ValueError where there is none for one."""
    if isinstance(towards, int):
        found = torch.full_like(labels, towards)
    else:
        rows = torch.arange(len(labels)) if key.row is None else key.row.cpu()
        if len(rows) and int(rows.amax()) >= len(towards):
            raise ValueError(
                f"towards names {len(towards)} classes, and image {int(rows.amax())} is attacked: give one for each"
            )
        found = torch.tensor(towards)[rows].to(labels)
    if len(found) and int(found.amax()) >= classes:
        raise ValueError(f"towards={int(found.amax())}: the network has {classes} classes, 0 to {classes - 1}")
    return found
