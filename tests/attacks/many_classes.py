"""Linear networks of many classes, on images that no ball meets the box of: every radius is known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES, SIDE = 12, 6
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


class ManyClasses(nn.Module):
    """logits = scale W x, of 12 classes on images [B, 3, 6, 6], counting the images it has seen."""

    classes = CLASSES

    def __init__(self, scale: float = 1.0, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(classes, 3 * SIDE * SIDE, generator=generator))
        self.scale, self.seen = scale, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.scale * (images.flatten(1) - 0.5) @ self.weight.T

    @torch.no_grad()
    def radius(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """[B] min_j (z_y - z_j) / ||w_y - w_j||_q, q dual to the norm; negative where it is wrong."""
        logits = (images.flatten(1) - 0.5).double() @ self.weight.double().T
        gaps = logits.gather(1, labels[:, None]) - logits
        lengths = (self.weight[labels][:, None] - self.weight[None]).double().norm(p=DUAL[norm], dim=2)
        return (gaps / lengths).scatter(1, labels[:, None], torch.inf).amin(1)


def images_of(count: int = 60, seed: int = 6) -> tuple[Tensor, Tensor]:
    """Images in [0.3, 0.7] and labels that the network gives nine in ten of."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 + 0.4 * (torch.rand(count, 3, SIDE, SIDE, generator=generator) - 0.5)
    with torch.no_grad():
        labels = ManyClasses()(images).argmax(1)
    return images, torch.where(torch.arange(count) % 10 == 0, (labels + 1) % CLASSES, labels)
