"""BatchNorm over groups of consecutive positions: statistics that depend on no rank, micro-batch or accumulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from robust_train.keyed.mode import Held
from robust_train.read.errors import ConfigError

KNOWN = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "BatchNormAct2d", "SyncBatchNormAct")
"""Classes whose forward is batch normalisation and, in timm's, what they carry as `drop` and `act` after it."""
FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
"""Classes with running statistics that nothing moves: they see every image alone."""


class GroupedBatchNorm(_BatchNorm):
    """Batch normalisation whose batch is `group` consecutive images, whichever rank or micro-batch holds them.

        y = w (x - mean_g) / sqrt(var_g + eps) + b
        running <- (1 - m) running + m mean over all groups of (mean_g, var_g)

    x [n B, C, ...]: n rows an image, side by side (a layer that flattens tokens has n > 1). Groups never meet in a
    forward: no collective. The running statistics are moved once an update, by the engine, from what was recorded here
    and summed over micro-batches and ranks. Fewer images than a group, or the rest of them, are a group of their own.
    `frozen`: running statistics in every mode, and none recorded; one made of frozen parameters alone is so at once.
    Parameters and buffers are named as in nn.BatchNorm2d. ConfigError where a group has one value a channel.
    """

    recorded: Tensor  # [2 C + 1]: sums over groups of mean and unbiased variance, and the number of groups

    def __init__(self, norm: _BatchNorm, held: Held, group: int, name: str = "") -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, track_running_stats=True)
        for own, given in zip(self.parameters(), norm.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)
        self.to(norm.running_mean.dtype)  # type: ignore[union-attr]  # `group_batchnorms` saw that it is there
        self.load_state_dict(norm.state_dict())
        recorded = torch.zeros(2 * norm.num_features + 1, dtype=self.running_mean.dtype)  # type: ignore[union-attr]
        self.register_buffer("recorded", recorded, persistent=False)
        self.held = held  # of the network, and all its BatchNorms
        self.group = group  # consecutive images that share statistics (a paper's per-device batch)
        self.name = name  # in the model: for errors, and for a mode that differs by layer
        trains = [parameter.requires_grad for parameter in self.parameters()]
        self.frozen = bool(trains) and not any(trains)
        # timm's BatchNormAct2d carries dropout and activation; they have no parameters, so no name changes
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        mode = self.held.now
        if self.frozen or mode.norm_of(self.name) == "running":
            normed = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            rows = len(x) // (mode.images or len(x))  # of each image
            groups = [self._normalise(group) for group in x.split(self.group * max(1, rows))]
            normed = groups[0] if len(groups) == 1 else torch.cat(groups)
        return self.act(self.drop(normed))

    def _normalise(self, group: Tensor) -> Tensor:
        if group.numel() == self.num_features:
            raise ConfigError(
                f"layer {self.name!r} sees one value a channel in a group of {self.group}: BatchNorm has no "
                "variance there. Set network.group to 2 or more (and the batch to whole groups), or take larger images."
            )
        # momentum 1 leaves the group's own mean and unbiased variance in the buffers given
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)  # type: ignore[arg-type]
        normed = F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        if self.held.now.record and torch.is_grad_enabled():
            self.recorded += torch.cat([mean, variance, mean.new_ones(1)])
        return normed

    @torch.no_grad()
    def move(self, recorded: Tensor) -> None:
        """Move the running statistics by what all micro-batches and ranks recorded, [2 C + 1]; no group, no move.

        Without a momentum the move is 1 / (moves so far + 1), as nn.BatchNorm2d has it: a plain average.
        """
        mean, variance, groups = recorded.to(self.recorded.dtype).split([self.num_features, self.num_features, 1])
        moves = (groups > 0).to(groups.dtype)
        self.num_batches_tracked += moves.long().squeeze()
        average = self.momentum is None
        share = moves / self.num_batches_tracked.clamp(min=1) if average else moves * self.momentum
        groups = groups.clamp(min=1)
        self.running_mean.lerp_(mean / groups, share)  # type: ignore[union-attr]
        self.running_var.lerp_(variance / groups, share)  # type: ignore[union-attr]


def group_batchnorms(model: nn.Module, held: Held, group: int) -> list[GroupedBatchNorm]:
    """Replace every BatchNorm of `model` (1d to 3d, synchronised, timm's with activation) in place; returns the new.

    Frozen ones stay. Raises ConfigError for what normalises over a batch in any other way.
    """
    grouped: dict[nn.Module, GroupedBatchNorm] = {}  # a module that stands in two places stays one module
    for name, module in list(model.named_modules(remove_duplicate=False)):
        kind = type(module).__name__
        if isinstance(module, GroupedBatchNorm) or kind in FROZEN:
            continue
        buffers = dict(module.named_buffers(recurse=False))
        if isinstance(module, _BatchNorm) and kind in KNOWN and "running_mean" in buffers and name:
            made = grouped.get(module) or GroupedBatchNorm(module, held, group, name)
            grouped[module] = made
            model.set_submodule(name, made)
        elif isinstance(module, _BatchNorm) or {"running_mean", "running_var"} & set(buffers):
            raise ConfigError(
                f"layer {name!r} ({kind}) normalises over the batch in a way that has no form for groups of images, so "
                "its numbers would depend on the ranks. Choose a variant of the model with another normalisation."
            )
    return list(grouped.values())
