"""What a run says about its records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["auto", "offline", "online", "off"]
Shown = Literal["auto", "bar", "lines", "off"]


@dataclass(frozen=True)
class Tracking:
    """How a run is followed. metrics.jsonl, timing.jsonl and summary.json are written whatever stands here."""

    wandb: Mode = "auto"  # Weights & Biases: auto is online where a key is found (WANDB_API_KEY, netrc), else offline
    project: str = "robust-train"  # W&B project
    entity: str | None = None  # W&B team or user; null: the key's own
    tags: tuple[str, ...] = ()  # W&B tags
    every: int = 10  # updates between two lines of timing.jsonl
    pictures: bool = True  # write pictures/ and mirror them to W&B
    progress: Shown = "auto"  # auto is a bar on a terminal, else a line about every ten seconds

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1: updates between two lines of timing.jsonl")
        for name, known in (("wandb", get_args(Mode)), ("progress", get_args(Shown))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
