"""Train image classifiers that hold under attack and shift, and measure truthfully how well they hold."""

from typing import TYPE_CHECKING, Any

from robust_train.vision import ensure_torchvision_importable

if TYPE_CHECKING:
    from robust_train.door.call import evaluate
    from robust_train.loading import load

__all__ = ["evaluate", "load"]
__version__ = "0.2.0"

ensure_torchvision_importable()


def __getattr__(name: str) -> Any:
    """`robust_train.load` and `evaluate`, imported when first asked for: they bring timm and the registries."""
    if name == "evaluate":  # the package, which can be called: to be found under its own name it stays what it is
        from importlib import import_module

        return import_module("robust_train.evaluate")
    if name == "load":
        from robust_train.loading import load

        return load
    raise AttributeError(f"module 'robust_train' has no attribute {name!r}")
