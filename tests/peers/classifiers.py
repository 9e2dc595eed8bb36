"""Networks on which attacks of other packages are compared with ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES, SIDE = 12, 6


def small_cnn() -> nn.Module:
    """Two convolutions and a linear layer on 1 x 8 x 8 images, seven classes, fixed weights, nothing trainable."""
    with torch.random.fork_rng([]):
        torch.manual_seed(4)
        layers = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(72, 7)).eval().requires_grad_(False)


def some_images(count: int = 8) -> tuple[Tensor, Tensor]:
    """Images at both faces of the box, and labels; 8 of them, so that a mean loss rounds like a sum."""
    generator = torch.Generator().manual_seed(1)
    images = (1.2 * torch.rand(count, 1, 8, 8, generator=generator) - 0.1).clamp(0, 1)
    return images, torch.randint(7, (count,), generator=generator)


class Linear(nn.Module):
    """Twelve classes, logits W (x - 1/2) on 3 x 6 x 6 images: every radius is known."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(
            "weight", torch.randn(CLASSES, 3 * SIDE * SIDE, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T

    def radii(self, images: Tensor, dual: float) -> Tensor:
        """[B]: min_j (z_y - z_j) / ||w_y - w_j||_dual, how far an image of class y is from being another's."""
        logits = self(images)
        top = logits.argmax(1)
        between = (self.weight[top][:, None] - self.weight).norm(p=dual, dim=-1)
        gaps = logits.gather(1, top[:, None]) - logits
        return (gaps / between).scatter(1, top[:, None], torch.inf).amin(1)


def middling(count: int = 60) -> Tensor:
    """Images of the linear classifier, far from black and white: no ball that is tried meets the box."""
    return 0.5 + 0.1 * (torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) - 0.5)
