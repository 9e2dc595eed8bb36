"""Randomness as an argument."""

from robust_train.keyed.draws import beta, bits, integers, normal, partners, uniform
from robust_train.keyed.key import Key
from robust_train.keyed.philox import philox

__all__ = ["Key", "beta", "bits", "integers", "normal", "partners", "philox", "uniform"]
