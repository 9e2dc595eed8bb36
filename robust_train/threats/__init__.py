"""Threat models: sets of allowed perturbations."""

from robust_train.threats import linf

__all__ = ["linf"]
