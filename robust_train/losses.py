"""Losses of each image alone, from logits [B, C] to [B], in float32 or better.

Targets are labels [B] int64 or distributions [B, C]. Means and sums over images are the caller's: attacks sum, so
that no image's step depends on the batch it is in; objectives take means.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def full(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least: losses are never taken in half precision."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def distribution(targets: Tensor, classes: int, smoothing: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Targets as distributions [B, C]: (1 - s) p + s / C, with p the one-hot label or the given distribution."""
    p = F.one_hot(targets, classes).to(dtype) if targets.dim() == 1 else targets.to(dtype)
    return p if smoothing == 0 else (1 - smoothing) * p + smoothing / classes


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """H(p, softmax f) = -sum_k p_k log softmax(f)_k, [B]."""
    return F.cross_entropy(full(logits), _matching(targets, logits), reduction="none", label_smoothing=smoothing)


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """-sum_k [p_k log s(f_k) + (1 - p_k) log(1 - s(f_k))], [B]: each class a question of its own (ViT's loss)."""
    logits = full(logits)
    p = distribution(targets, logits.shape[1], smoothing, logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, p, reduction="none").sum(1)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax reference || softmax logits) = sum_k p_k (log p_k - log q_k), [B]. Gradients flow into both."""
    log_q, log_p = F.log_softmax(full(logits), 1), F.log_softmax(full(reference), 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """[B] float32: 1 where the largest logit is the label (of a distribution: its largest entry). NaN is wrong."""
    return ((logits.argmax(1) == labels_of(targets)) & logits.isfinite().all(1)).float()


def labels_of(targets: Tensor) -> Tensor:
    """[B] int64: labels as they are, of distributions [B, C] the largest entry."""
    return targets if targets.dim() == 1 else targets.argmax(1)


def margin(logits: Tensor, targets: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j, [B]: below 0 where the network is wrong. NaN counts as wrong: -inf."""
    z, labels = full(logits), labels_of(targets)
    own = z.gather(1, labels[:, None]).squeeze(1)
    other = z.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (own - other).masked_fill(~z.isfinite().all(1), -torch.inf)


def overtaking(logits: Tensor, targets: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y, [B]: the margin as a loss, above 0 where the network is wrong."""
    return -margin(logits, targets)


def dlr(logits: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), [B]: the margin in units that no scale of the logits changes.

    z_(k) is the k-th largest. Needs three classes. Croce and Hein 2020 (arXiv 2003.01690, eq. 6).
    """
    z, labels = full(logits), labels_of(targets)
    (first, second, third), order = z.topk(3, dim=1).values.unbind(1), z.argmax(1)
    other = torch.where(order == labels, second, first)
    return -(z.gather(1, labels[:, None]).squeeze(1) - other) / (first - third + 1e-12)


def targeted_dlr(logits: Tensor, targets: Tensor, goals: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), [B], towards the classes `goals` [B]. Needs four classes.

    Croce and Hein 2020 (arXiv 2003.01690, eq. 7).
    """
    z, labels = full(logits), labels_of(targets)
    first, _, third, fourth = z.topk(4, dim=1).values.unbind(1)
    gap = z.gather(1, labels[:, None]) - z.gather(1, goals[:, None])
    return -gap.squeeze(1) / (first - (third + fourth) / 2 + 1e-12)


def _matching(targets: Tensor, logits: Tensor) -> Tensor:
    """Distributions in the precision of the loss; labels as they are."""
    return targets if targets.dim() == 1 else targets.to(full(logits).dtype)
