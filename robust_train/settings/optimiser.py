"""The optimiser of a run, or of a part: timm's by name, and the rate its schedule gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from robust_train.read.registry import Number


@dataclass(frozen=True)
class Optimiser:
    """An optimiser of timm by name, its rate and its weight decay.

    Weight decay spares biases and norms, and what the model names in `no_weight_decay` (class tokens, positions),
    unless `decay_all` is set.
    """

    name: str = "sgd"  # timm's name: sgd (Nesterov), momentum, adamw, nadamw, lion, lamb, ...
    lr: Number = 0.1  # learning rate: a number or a schedule
    weight_decay: float = 0.0  # decoupled for adamw and lion, in the gradient for sgd
    momentum: float = 0.9  # for sgd, momentum and rmsprop
    betas: tuple[float, float] | None = None  # for adam and its kin; the optimiser's own where absent
    clip: float = 0.0  # largest norm of the whole gradient; 0: no clipping
    decay_all: bool = False  # weight decay on biases and norms too
    options: dict[str, float | bool | str] = field(default_factory=dict)  # further arguments of timm's optimiser

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum:g} is not in [0, 1): at 1 no step is ever forgotten")
        if self.clip < 0:
            raise ValueError(f"clip={self.clip:g} must not be negative: it is the largest norm of the gradient")
