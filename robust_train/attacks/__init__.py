"""Attacks: searches in a threat model."""

from robust_train.attacks import combine, fgsm, msd, pgd

__all__ = ["combine", "fgsm", "msd", "pgd"]
