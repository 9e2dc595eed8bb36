"""A report as tools.eval writes it, and images to show, made of nothing but numbers."""

from __future__ import annotations

from typing import Any

import torch

from robust_train.evaluate.report import Budget, Figure, Flag, Report
from robust_train.records.exhibits import Exhibit

NAMES = ["cat", "<b>dog</b> & co", "ox"]
PGD = {"use": "pgd", "threat": {"use": "linf", "eps": 0.1}, "steps": 20}
SQUARE = {"use": "square", "threat": {"use": "linf", "eps": 0.1}, "steps": 5000}
L2 = {"use": "pgd", "threat": {"use": "l2", "eps": 1.0}, "steps": 20}
WHOLE = {"use": "both", "attacks": ["linf/pgd20", "linf/square"]}


def report(images: int = 40, right: tuple[float, ...] = (36, 20, 18, 18, 30, 16)) -> Report:
    """Two threat models, of which the first has two attacks in a row, and their union."""
    clean, pgd, square, whole, l2, union = right
    figures = (
        Figure("clean", clean, images, 0.0),
        Figure("pgd20", pgd, images, 0.1, PGD, "linf", part=True),
        Figure("square", square, images, 0.1, SQUARE, "linf", part=True),
        Figure("both", whole, images, 0.1, WHOLE, "linf"),
        Figure("pgd20", l2, images, 1.0, L2, "l2"),
        Figure("union", union, images, None, {"use": "union", "of": ["linf/both", "l2/pgd20"]}, "union"),
    )
    points = (figures[0], Figure("pgd20", images / 2, images, 0.1, PGD, "linf"))
    flags = (
        Flag("dynamic", False, "one forward takes 0 gradients", 0.0, 0.0),
        Flag("more steps help", None, "the attack that looks for it was not made"),
        Flag("randomised", True, "logits differ by 0.4 <between> passes", 0.4, 1e-4),
    )
    rows = ((20.0, 18.0, 10.0), (20.0, 18.0, 6.0), (0.0, 0.0, 0.0))
    budget = Budget("pgd20", "linf", (0, 1, 20), (0.9, 0.7, 0.5))
    return Report(figures, (points,), (budget,), ("clean", "union"), rows, flags)


def tree(model: str = "runs/<i>demo</i>", **changed: Any) -> dict[str, Any]:
    """What stands in eval.json."""
    made = report()
    return {
        "command": "python -m tools.eval runs/demo --eps '0.1'",
        "model": model,
        "weights": f"{model}/checkpoints/00000330",
        "identity": {"weights": "a" * 64, "averaged": True, "model": None, "data": {"val-0.tar": "b" * 64}},
        "images": made.images,
        "evaluation": {"attack": "both"},
        "seed": 0,
        **made.tree(NAMES),
        "notes": ["a note"],
        "pictures": [],
        "verdicts": "eval.verdicts.safetensors",
        "versions": {"robust_train": "0.1.0", "torch": "2.13"},
        "device": "cpu: x86_64",
        "threads": 2,
        "seconds": 7.5,
        **changed,
    }


def exhibit(fallen: bool = True, threat: str = "linf", change: int = 16, size: int = 8) -> Exhibit:
    """An image of the class "cat" and a point that lies `change` grey levels from it."""
    clean = torch.full((3, size, size), 100, dtype=torch.uint8)
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0] if fallen else [1.0, 0.0, 0.0]])
    pixels = torch.stack([clean, clean + change])
    return Exhibit(threat, "pgd20", 7, 0, fallen, -1.25 if fallen else 0.5, change / 255, pixels, logits)


def exhibits() -> list[Exhibit]:
    return [exhibit(fallen, threat) for threat in ("linf", "l2") for fallen in (True, False)]
