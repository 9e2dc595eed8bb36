"""Objectives: what one update minimises."""

from robust_train.objectives import madry, plain

__all__ = ["madry", "plain"]
