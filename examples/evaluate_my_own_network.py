"""Judge a network that this package has never seen: its accuracy clean and under attack, and whether to believe it.

    python examples/evaluate_my_own_network.py              # seconds on a laptop; nothing is fetched
    python examples/evaluate_my_own_network.py --strong     # by AutoAttack

Put your network in the place of `network`, your images [N, C, H, W] in [0, 1] and labels [N] in the place of `images`.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import robust_train


class Normalised(nn.Module):
    """Normalisation belongs inside: attacks move pixels in [0, 1]."""

    def __init__(self, body: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.body, self.mean, self.std = body, mean, std

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images - self.mean) / self.std)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """Handwritten digits, [1797, 1, 8, 8] in [0, 1], and what they are."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def network(images: Tensor, labels: Tensor) -> nn.Module:
    """A small convolutional network, trained on clean images."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    module = Normalised(body, mean=0.3, std=0.4)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(images), labels).backward()
        optimiser.step()
    return module.eval()


def noise(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """An attack is any function of these three; this one hardly tries."""
    return (images + 0.1 * (2 * torch.rand_like(images) - 1)).clamp(0, 1)


def main(words: list[str]) -> None:
    """Train, judge, show."""
    images, labels = images_and_labels()
    module = network(images[500:], labels[500:])
    images, labels = images[:200], labels[:200]

    attack = "autoattack" if "--strong" in words else [noise, "fgsm", {"use": "apgd", "steps": 20}]
    report = robust_train.evaluate(module, images, labels, threats={"linf": 0.1}, attack=attack, checks=20)

    print(report)
    weakest = min(report.per_class, key=lambda name: report.per_class[name][report.columns[-1]])
    print(f"the weakest class is {weakest}: {report.per_class[weakest]}")
    print("believe it" if not report.raised else f"first look at: {', '.join(flag.name for flag in report.raised)}")


if __name__ == "__main__":
    main(sys.argv[1:])
