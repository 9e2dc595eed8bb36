"""Threat models: sets of allowed perturbations."""

from robust_train.threats import l1, l2, linf, pixels, pyramid, weights

__all__ = ["l1", "l2", "linf", "pixels", "pyramid", "weights"]
