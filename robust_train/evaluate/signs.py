"""Signs that a network hides its gradient, so that an attack by gradients finds less than there is.

After Athalye et al. 2018 (arXiv 1802.00420, section 3.1) and Carlini et al. 2019 (arXiv 1902.06705, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.report import Figure
from robust_train.losses import correct, cross_entropy
from robust_train.nouns import Batch

FLAT = 0.05  # share of right images without any gradient that is worth a word
RISE = 0.01  # rise of accuracy with eps, as a share of all images, that one start's luck does not explain


def without_gradient(network: Any, batch: Batch) -> float:
    """Share of the right images on which the gradient of the cross-entropy is 0 in every pixel: 0 / 0 counts as 0.

    A network whose softmax is 1 in float32 has this without any defence: its cross-entropy is flat. Costs two forwards.
    """
    with judged(network), torch.enable_grad():
        images = batch.images.detach().clone().requires_grad_()
        logits = network(images)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, batch.targets).sum(), images)
    right = correct(logits.detach(), batch.targets).bool()
    flat = gradient.flatten(1).abs().amax(1) == 0
    return float((flat & right).sum()) / max(1, int(right.sum()))


def signs(curve: Sequence[Figure], flat: float) -> tuple[str, ...]:
    """What speaks for masking, in words. curve: by growing eps; flat: from `without_gradient`."""
    found = []
    if flat > FLAT:
        found.append(
            f"{flat:.0%} of the right images have no gradient at all, so PGD on the cross-entropy goes nowhere from "
            "them: attack another loss"
        )
    for near, far in pairwise(curve):
        if far.right - near.right > RISE * far.images:
            found.append(
                f"accuracy rises from {near.accuracy:.1%} at eps {near.eps:.4g} to {far.accuracy:.1%} at eps "
                f"{far.eps:.4g}: the larger ball holds the smaller, so the attack misses what is there"
            )
    return tuple(found)
