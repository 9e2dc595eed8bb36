"""Train image classifiers that hold under attack and shift, and measure truthfully how well they hold."""

from robust_train.vision import ensure_torchvision_importable

ensure_torchvision_importable()
