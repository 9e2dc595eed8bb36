"""Shards to batches. Data sets, augmentations and mixings are registered by these imports."""

from robust_train.data import augment, digits, mix, shards, shifts
from robust_train.data.digits import Digits
from robust_train.data.mix import Mix, Mixup
from robust_train.data.shards import Shards

__all__ = ["Digits", "Mix", "Mixup", "Shards", "augment", "digits", "mix", "shards", "shifts"]
