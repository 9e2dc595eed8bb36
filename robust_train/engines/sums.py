"""What an update sums over its micro-batches and ranks beside gradients: one flat vector, so one collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_train.nouns import Loss
from robust_train.read.errors import ConfigError

STRIDE = 1024
"""The flat vector's length is a multiple of it: ranks that name unlike things still meet in one collective, and see."""


def names(loss: Loss) -> str:
    """What a loss consists of: whether the network has one, and every name with its shape."""
    kinds = {"metrics": loss.metrics, "counts": loss.counts, "sums": loss.sums, "of": loss.of}
    lines = ["total" if loss.total is not None else "no total"]
    lines += [f"{kind} {name} {list(values[name].shape)}" for kind, values in kinds.items() for name in sorted(values)]
    return "\n".join(lines)


def digest(text: str) -> int:
    """A number below 2^48, exact in float64."""
    return int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big")


def unlike(update: int, objective: str, mine: str, theirs: str | None, where: str) -> ConfigError:
    """The refusal of losses that do not consist of the same things; theirs: None where only a digest is known."""
    what = "other metrics, counts, sums or parts"
    if theirs is not None:
        odd = sorted(set(mine.splitlines()) ^ set(theirs.splitlines()))
        what = f"unlike things ({'; '.join(odd[:4])}{'; ...' if len(odd) > 4 else ''})"
    return ConfigError(
        f"update {update}: objective {objective} gives {what} {where}. They are summed, so every micro-batch and rank "
        "of an update must give the same names and shapes: give zeros where there is nothing to count."
    )


def summed(dicts: Sequence[Mapping[str, Tensor]], scale: float = 1.0) -> dict[str, Tensor]:
    """Sums by name over the micro-batches, in float64, times `scale`; names in sorted order, the same on every rank."""
    return {name: torch.stack([values[name].double() for values in dicts]).sum(0) * scale for name in sorted(dicts[0])}


def pack(*groups: Mapping[str, Tensor]) -> Tensor:
    """One float64 vector of all tensors, zeros at its end."""
    flat = torch.cat([tensor.double().flatten() for group in groups for tensor in group.values()])
    return F.pad(flat, (0, -len(flat) % STRIDE))


def unpack(flat: Tensor, *groups: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The groups' tensors again, of the shapes they had, from the vector's beginning."""
    found = []
    for group in groups:
        pieces = flat[: size(group)].split([tensor.numel() for tensor in group.values()])
        found.append({name: piece.view(group[name].shape) for name, piece in zip(group, pieces, strict=True)})
        flat = flat[size(group) :]
    return found


def size(group: Mapping[str, Tensor]) -> int:
    """How many numbers a group holds."""
    return sum(tensor.numel() for tensor in group.values())


def squared_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """The squared norm of all gradients together, float64."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum()
