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
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return ((logits.argmax(1) == labels) & logits.isfinite().all(1)).float()


def _matching(targets: Tensor, logits: Tensor) -> Tensor:
    """Distributions in the precision of the loss; labels as they are."""
    return targets if targets.dim() == 1 else targets.to(full(logits).dtype)
