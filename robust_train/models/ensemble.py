"""Several networks as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.keyed.mode import Changes, Draw, Precision
from robust_train.models.network import Moded, Network

Mean = Literal["logits", "probabilities"]


class Ensemble(Moded):
    """A weighted mean of what networks say of the same pixels; stands wherever a network stands.

        logits:         sum_m w_m f_m(x)
        probabilities:  log sum_m w_m softmax f_m(x), whose softmax is the mean of the members'

    Members may be of any architecture, with any normalisation inside. Noise and masks of each are independent: member m
    draws from key.at(m). Costs a forward of every member.
    """

    weights: Tensor  # [M], on the simplex

    def __init__(
        self, members: Sequence[Network], mean: Mean = "logits", weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        classes = {member.classes for member in members}
        if len(classes) != 1:
            raise ValueError(f"members answer with {sorted(classes) or 'no'} classes: an ensemble's all have the same")
        given = [1 / len(members)] * len(members) if weights is None else list(weights)
        if len(given) != len(members) or min(given) < 0 or abs(sum(given) - 1) > 1e-6:
            raise ValueError(f"weights={given} must be {len(members)} shares, none below 0, that add up to 1")
        self.members = nn.ModuleList(members)
        self.classes, self.mean = classes.pop(), mean
        self.register_buffer("weights", torch.tensor(given, dtype=torch.float64), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes], float32 or better."""
        return mixed(self.answers(images), self.weights, self.mean)

    def answers(self, images: Tensor) -> Tensor:
        """[M, B, classes] the members' logits."""
        each = []
        for index, member in enumerate(self.each):
            with member.mode(fixed=member.now.fixed.at(index)):  # no two share a draw; each alone stays as it is
                each.append(member(images))
        return torch.stack(each)

    @property
    def each(self) -> list[Network]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    @property
    def noisy(self) -> list[str]:
        """Names of the layers that draw noise."""
        return [f"members.{index}.{name}" for index, member in enumerate(self.each) for name in member.noisy]

    @property
    def by_chance(self) -> bool:
        return any(member.by_chance for member in self.each)

    @property
    def precision(self) -> Precision:
        """Of the members' forwards."""
        return self.each[0].precision

    @contextmanager
    def mode(self, training: bool | None = None, **changes: Unpack[Changes]) -> Iterator[None]:
        """As a network's, for each member; a key of each member's own where one is given."""
        if any(isinstance(value, Draw) for value in changes.values()):
            raise ValueError("an ensemble's members draw each by a key of its own: give a key, no Draw")
        with ExitStack() as stack:
            for index, member in enumerate(self.each):
                own: Any = {
                    name: value.at(index) if isinstance(value, Key) else value for name, value in changes.items()
                }
                stack.enter_context(member.mode(training, **own))
            yield


def mixed(logits: Tensor, weights: Tensor, mean: Mean) -> Tensor:
    """[..., C] from the logits [M, ..., C] of M members with weights [M] on the simplex, as `mean` says."""
    weights = weights.to(logits.dtype).view(-1, *[1] * (logits.dim() - 1))
    if mean == "logits":
        return (weights * logits).sum(0)
    return torch.logsumexp(logits.log_softmax(-1) + weights.log(), 0)
