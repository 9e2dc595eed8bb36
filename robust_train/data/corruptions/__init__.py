"""Common corruptions of images: the 15 of ImageNet-C and the 4 set aside for validation, at 5 severities."""

from robust_train.data.corruptions.benchmark import BENCHMARK, CATEGORIES, NAMES, SEVERITIES, SIZES, VALIDATION, named
from robust_train.data.corruptions.generate import corrupt

__all__ = ["BENCHMARK", "CATEGORIES", "NAMES", "SEVERITIES", "SIZES", "VALIDATION", "corrupt", "named"]
