"""Attacks: searches in a threat model."""

from robust_train.attacks import pgd

__all__ = ["pgd"]
