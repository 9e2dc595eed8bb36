"""Models: what turns images into logits."""

from robust_train.models import small_cnn

__all__ = ["small_cnn"]
