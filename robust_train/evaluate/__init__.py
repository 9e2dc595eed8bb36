"""Evaluators: a network and data to a report."""

from robust_train.evaluate import pgd

__all__ = ["pgd"]
