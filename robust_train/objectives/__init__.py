"""Objectives: what one update minimises."""

from robust_train.objectives import generalized, interpolated, madry, plain, pyramid, trades

__all__ = ["generalized", "interpolated", "madry", "plain", "pyramid", "trades"]
