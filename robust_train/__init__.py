"""Train image classifiers that hold under attack and shift, and measure truthfully how well they hold."""

from typing import TYPE_CHECKING, Any

from robust_train.vision import ensure_torchvision_importable

if TYPE_CHECKING:
    from robust_train.loading import load

__all__ = ["load"]
__version__ = "0.2.0"

ensure_torchvision_importable()


def __getattr__(name: str) -> Any:
    """`robust_train.load`, imported when first asked for: it brings timm and the registries."""
    if name == "load":
        from robust_train.loading import load

        return load
    raise AttributeError(f"module 'robust_train' has no attribute {name!r}")
