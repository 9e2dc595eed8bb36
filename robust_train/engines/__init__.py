"""Who turns losses into new parameters, and the schedules of their numbers."""

from robust_train.engines import schedule

__all__ = ["schedule"]
