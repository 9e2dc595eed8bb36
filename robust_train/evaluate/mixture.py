"""What share each member of an ensemble should have, and how sure each is of itself: fitted on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_train.evaluate.accuracy import judged
from robust_train.keyed import Key
from robust_train.losses import labels_of
from robust_train.models.ensemble import Ensemble, Mean
from robust_train.nouns import Batch
from robust_train.read.errors import DataError, NumericsError

ROUNDS = 20_000  # of EM at most
GAP = 1e-9  # of the mean log-likelihood, below which EM ends
NONE = 1e-6  # a share below it, of a member that the loss would rather be without, is none
SHARPEST, FLATTEST = 0.01, 100.0  # temperatures that are looked at

Loss = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Weights [M] to the loss and its gradient [M]."""


def answered(ensemble: Ensemble, batches: Iterable[Batch], key: Key, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    """The logits [M, N, C] of each member and the labels [N]: each member's forward once, its noise by key and sample.

    Raises DataError where there is no image, NumericsError for logits that are not finite.
    """
    logits, labels = [], []
    for raw in batches:
        batch = raw.to(device)
        with judged(ensemble, key.rows(batch.sample)), torch.no_grad():
            logits.append(ensemble.answers(batch.images).cpu())
        labels.append(labels_of(batch.targets).cpu())
    if not labels:
        raise DataError("there are no images to fit on: name shards that hold some, or a smaller --skip")
    found = torch.cat(logits, 1)
    sound = found.isfinite().flatten(1).all(1)
    if not bool(sound.all()):
        raise NumericsError(
            f"member {int((~sound).nonzero()[0]) + 1} gives logits that are not finite on some of the images: leave it "
            "out of the ensemble"
        )
    return found, torch.cat(labels)


def loss_of(logits: Tensor, labels: Tensor, weights: Tensor, mean: Mean) -> float:
    """The mean cross-entropy of the answer of an ensemble: logits [M, N, C], labels [N], weights [M]."""
    value, _ = _loss(logits, labels, mean)(weights.double().numpy())
    return value


def fit_weights(logits: Tensor, labels: Tensor, mean: Mean) -> Tensor:
    """[M] float64 on the simplex: the shares w whose ensemble has the least mean cross-entropy. Convex in w.

        logits:         mean_n H(y_n, softmax sum_m w_m z_mn)         by sequential quadratic programming
        probabilities:  mean_n -log sum_m w_m p_m(y_n | x_n)          by EM: w_m <- w_m mean_n p_m / sum_j w_j p_j

    logits [M, N, C]; labels [N]. Begins at equal shares, so members that are all alike keep them. EM ends when
    max_m g_m - 1, the factor of w_m in its step, bounds the loss within 1e-9 of the least, or after 20,000 steps.
    """
    if mean == "probabilities":
        weights = _em(_likelihoods(logits, labels))
    else:
        weights = _quadratic(_loss(logits, labels, mean), len(logits))
    return torch.from_numpy(weights)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """T > 0 with the least mean cross-entropy of softmax(z / T), within [0.01, 100]; logits [N, C], labels [N].

    Where mean_n (sum_c q_c z_c - z_y) = 0, q = softmax(z / T), which rises with 1 / T. Above 1: too sure of itself.
    """
    from scipy.optimize import brentq

    z = logits.double().numpy()
    own = z[np.arange(len(z)), labels.numpy()]

    def slope(inverse: float) -> float:
        return float((np.sum(_softmax(inverse * z) * z, -1) - own).mean())

    if slope(1 / SHARPEST) <= 0:
        return SHARPEST
    if slope(1 / FLATTEST) >= 0:
        return FLATTEST
    return 1 / float(brentq(slope, 1 / FLATTEST, 1 / SHARPEST, xtol=1e-12, rtol=1e-12))


def _likelihoods(logits: Tensor, labels: Tensor) -> np.ndarray:
    """[M, N] p_m(y_n | x_n), each image's scaled by its largest, which changes no optimum."""
    logs = logits.double().log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return (logs - logs.amax(0)).exp().numpy()


def _em(likelihoods: np.ndarray) -> np.ndarray:
    count, images = likelihoods.shape
    weights = np.full(count, 1 / count)
    for _ in range(ROUNDS):
        factor = likelihoods @ (1 / (weights @ likelihoods)) / images
        if factor.max() - 1 <= GAP:
            break
        weights = weights * factor
    weights = np.where((weights < NONE) & (factor < 1), 0.0, weights)
    return weights / weights.sum()


def _quadratic(loss: Loss, count: int) -> np.ndarray:
    from scipy.optimize import minimize

    found = minimize(
        loss,
        np.full(count, 1 / count),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0.0, None)
    weights = np.where(weights < NONE, 0.0, weights)
    return weights / weights.sum()


def _loss(logits: Tensor, labels: Tensor, mean: Mean) -> Loss:
    """The loss as a function of the weights, with its gradient."""
    if mean == "probabilities":
        logs = logits.double().log_softmax(-1)[:, torch.arange(len(labels)), labels].numpy()
        top = logs.max(0)
        likelihoods = np.exp(logs - top)

        def of_probabilities(weights: np.ndarray) -> tuple[float, np.ndarray]:
            mixture = weights @ likelihoods
            return float(-(np.log(mixture) + top).mean()), -(likelihoods / mixture).mean(1)

        return of_probabilities
    z = logits.double().numpy()
    rows = np.arange(len(labels)), labels.numpy()

    def of_logits(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.tensordot(weights, z, 1)
        top = mixed.max(1, keepdims=True)
        spread = np.exp(mixed - top)
        total = spread.sum(1, keepdims=True)
        value = (np.log(total[:, 0]) + top[:, 0] - mixed[rows]).mean()
        residual = spread / total
        residual[rows] -= 1
        return float(value), np.tensordot(z, residual, 2) / len(residual)

    return of_logits


def _softmax(z: np.ndarray) -> np.ndarray:
    spread = np.exp(z - z.max(-1, keepdims=True))
    return spread / spread.sum(-1, keepdims=True)
