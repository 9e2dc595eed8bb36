"""BatchNorm over groups of consecutive positions, so that its statistics do not depend on ranks, parts or accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Norms:
    """How every GroupedBatchNorm of one network normalises at the moment; shared by all of them."""

    group: int  # consecutive positions that share statistics (a paper's per-device batch)
    use: Literal["group", "running"] = "group"
    record: bool = True  # whether forwards with a graph count towards the running statistics


class GroupedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose batch is `group` consecutive images, whichever rank or part holds them.

        y = w (x - mean_g) / sqrt(var_g + eps) + b,    running <- (1 - m) running + m mean over all groups of (mean_g, var_g)

    Groups never meet in a forward: no collective. The running statistics are moved once an update, by the engine, from
    what was recorded here and summed over parts and ranks. A part smaller than a group, or its rest, is a group of its own.
    Parameters and buffers are named as in nn.BatchNorm2d. `then` is what timm's BatchNormAct2d does after the norm.
    """

    recorded: Tensor  # [2 C + 1]: sums over groups of mean and unbiased variance, and the number of groups

    def __init__(self, norm: nn.BatchNorm2d, norms: Norms) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, track_running_stats=True)
        self.load_state_dict(norm.state_dict())
        reference = self.running_mean
        assert reference is not None
        self.register_buffer("recorded", torch.zeros(2 * norm.num_features + 1, dtype=reference.dtype), persistent=False)
        self.norms = norms
        # timm's BatchNormAct2d carries dropout and activation; they have no parameters, so no name changes
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        if self.norms.use == "running":
            normed = F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            groups = [self._normalise(group) for group in images.split(self.norms.group)]
            normed = groups[0] if len(groups) == 1 else torch.cat(groups)
        return self.act(self.drop(normed))

    def _normalise(self, group: Tensor) -> Tensor:
        # momentum 1 leaves the group's own mean and unbiased variance in the buffers given
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        normed = F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        if self.norms.record and torch.is_grad_enabled():
            self.recorded += torch.cat([mean, variance, mean.new_ones(1)])
        return normed

    @torch.no_grad()
    def move(self, recorded: Tensor) -> None:
        """Move the running statistics by what all parts and ranks recorded, [2 C + 1]; no group, no move."""
        mean, variance, groups = recorded.to(self.running_mean.dtype).split([self.num_features, self.num_features, 1])
        share = torch.where(groups > 0, 0.1 if self.momentum is None else self.momentum, 0.0)
        groups = groups.clamp(min=1)
        self.running_mean.lerp_(mean / groups, share)
        self.running_var.lerp_(variance / groups, share)
        self.num_batches_tracked += 1


def group_batchnorms(model: nn.Module, norms: Norms) -> list[GroupedBatchNorm]:
    """Replace every BatchNorm2d (timm's BatchNormAct2d too) of `model` in place; returns the new ones, in order."""
    made = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not isinstance(module, GroupedBatchNorm):
            parent = model.get_submodule(name.rpartition(".")[0])
            grouped = GroupedBatchNorm(module, norms)
            setattr(parent, name.rpartition(".")[2], grouped)
            made.append(grouped)
    return made
