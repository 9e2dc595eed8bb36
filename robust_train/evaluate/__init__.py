"""Evaluators: a network and data to a report."""

from robust_train.evaluate import robustness

__all__ = ["robustness"]
