"""What the corruptions are called, how they are grouped, and their parameters at 224, 64 and 32 pixels.

Hendrycks and Dietterich 2019 (arXiv 1903.12261); the numbers are those of the generators that made ImageNet-C (224),
Tiny-ImageNet-C (64) and CIFAR-10-C (32). What each number means stands in the function that takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from robust_train.read.errors import ConfigError, nearest

CATEGORIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The 15 by category; means over a category are of these."""

BENCHMARK = tuple(name for names in CATEGORIES.values() for name in names)
VALIDATION = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # for tuning: in no mean over the 15
NAMES = BENCHMARK + VALIDATION
SEVERITIES = (1, 2, 3, 4, 5)
SIZES = (224, 64, 32)

WIDE = 244  # the side by which the generator for 224 pixels scales the elastic transform


def named(text: str | Iterable[str]) -> tuple[str, ...]:
    """Corruptions by name, category, `all` (the 15) or `validation` (the other 4), in the benchmark's order.

    `text`: names with commas between them, or a list. Raises ConfigError, with the nearest name, for another.
    """
    groups = {"all": BENCHMARK, "validation": VALIDATION, **CATEGORIES}
    found: set[str] = set()
    for word in text.split(",") if isinstance(text, str) else text:
        word = word.strip()
        if word not in groups and word not in NAMES:
            known = (*groups, *NAMES)
            raise ConfigError(f"{word!r} is no corruption{nearest(word, known)} (known: {', '.join(known)})")
        found.update(groups.get(word, (word,)))
    return tuple(name for name in NAMES if name in found)


def parameters(name: str, size: int, severity: int) -> Any:
    """What a corruption takes at a severity, for images of a side. Raises ConfigError where there is no such thing."""
    if name not in NAMES:
        raise ConfigError(f"{name!r} is no corruption{nearest(name, NAMES)} (known: {', '.join(NAMES)})")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity={severity} of {name} is not in 1, ..., 5")
    if size not in SIZES:
        raise ConfigError(
            f"corruptions are defined for images of 224, 64 and 32 pixels, not of {size}: resize the images to one of "
            "these first"
        )
    return _PARAMETERS[name][SIZES.index(size)][severity - 1]


_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_SMALL_ZOOM = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))


def _scaled(side: int, *rows: tuple[float, float, float]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(side * value for value in row) for row in rows)


_PARAMETERS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {  # for 224, 64, 32 pixels
    "gaussian_noise": (
        (0.08, 0.12, 0.18, 0.26, 0.38),
        (0.04, 0.08, 0.12, 0.15, 0.18),
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot_noise": ((60, 25, 12, 5, 3), (250, 100, 50, 30, 15), (500, 250, 100, 75, 50)),
    "impulse_noise": (
        (0.03, 0.06, 0.09, 0.17, 0.27),
        (0.01, 0.02, 0.05, 0.08, 0.14),
        (0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus_blur": (
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": (
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        _SMALL_ZOOM,
        _SMALL_ZOOM,
    ),
    "snow": (
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (
        ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    ),
    "fog": (
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": (_BRIGHTNESS, _BRIGHTNESS, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_CONTRAST, _CONTRAST, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _scaled(WIDE, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        _scaled(64, (0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        _scaled(32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": ((0.6, 0.5, 0.4, 0.3, 0.25), (0.9, 0.8, 0.7, 0.6, 0.5), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": ((25, 18, 15, 10, 7), (65, 58, 50, 40, 25), (80, 65, 58, 50, 40)),
    "speckle_noise": ((0.15, 0.2, 0.35, 0.45, 0.6), (0.15, 0.2, 0.25, 0.3, 0.35), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": ((1, 2, 3, 4, 6), (0.5, 0.75, 1, 1.25, 1.5), (0.4, 0.6, 0.7, 0.8, 1)),
    "spatter": (
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
    ),
    "saturate": (
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
}
