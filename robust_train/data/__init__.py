"""Shards to batches: data sets, augmentations and mixings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_train.data.shards import Shards

__all__ = ["Shards"]


def __getattr__(name: str) -> Any:
    """`robust_train.data.Shards`, imported when first asked for: the modules it is made of lie in this package."""
    if name == "Shards":
        from robust_train.data.shards import Shards

        return Shards
    raise AttributeError(f"module 'robust_train.data' has no attribute {name!r}")
