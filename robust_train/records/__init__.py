"""What a run leaves to be read: metrics, timing, progress, pictures, tracking."""

from robust_train.records.records import Records
from robust_train.records.tracking import Tracking

__all__ = ["Records", "Tracking"]
