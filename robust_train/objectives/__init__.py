"""Objectives: what one update minimises."""

from robust_train.objectives import distill, generalized, interpolated, madry, plain, pyramid, trades

__all__ = ["distill", "generalized", "interpolated", "madry", "plain", "pyramid", "trades"]
