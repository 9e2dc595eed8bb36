"""The nouns every part of the project speaks: batches, losses, schedules, and the roots of the registries.

Nothing of ours is imported here; everything else imports this.
"""

from robust_train.nouns.fooling import Attack, Goal, PerImage, Raising, Score, Threat
from robust_train.nouns.learning import Loss, Part, State
from robust_train.nouns.roots import (
    Augmentation,
    Dataset,
    Edit,
    Evaluator,
    Mixing,
    Model,
    Objective,
    Piece,
    Tensors,
    Transform,
)
from robust_train.nouns.samples import PIXELS, Batch, Extra, Place, Scale, Shape
from robust_train.nouns.schedule import Noun, Schedule, at, number, within
from robust_train.nouns.terms import Divergence, Weighting

__all__ = [
    "PIXELS",
    "Attack",
    "Augmentation",
    "Batch",
    "Dataset",
    "Divergence",
    "Edit",
    "Evaluator",
    "Extra",
    "Goal",
    "Loss",
    "Mixing",
    "Model",
    "Noun",
    "Objective",
    "Part",
    "PerImage",
    "Piece",
    "Place",
    "Raising",
    "Scale",
    "Schedule",
    "Score",
    "Shape",
    "State",
    "Tensors",
    "Threat",
    "Transform",
    "Weighting",
    "at",
    "number",
    "within",
]
