"""Runs as they are written: YAML, registries, overrides, errors, help."""

from robust_train.read.errors import CheckpointError, ConfigError, DataError, NumericsError, RunError, main_guard
from robust_train.read.parse import difference, dump, load_tree, parse

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "NumericsError",
    "RunError",
    "difference",
    "dump",
    "load_tree",
    "main_guard",
    "parse",
]
