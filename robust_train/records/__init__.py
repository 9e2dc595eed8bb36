"""What a run leaves to be read: metrics, timing, progress, pictures, tracking."""

from robust_train.records.records import Records

__all__ = ["Records"]
