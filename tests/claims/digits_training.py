"""The bench on which claims are shown in miniature: scikit-learn's digits, a small MLP, Adam.

1,797 real 8 x 8 images in [0, 1], the first 1,297 of numpy's RandomState(0).permutation for training, 500 for testing;
64-256-128-10 with ReLU, weights N(0, 2 / fan-in), biases 0; Adam 1e-3, 128 images an update, the rest of an epoch
dropped. Some seconds a network on one core.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.network import Network
from robust_train.nouns import Attack, Batch, Objective, Shape, State, at
from robust_train.objectives.generalized import Generalized
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain

BATCH = 128


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1297, 1, 8, 8] and labels, test images [500, 1, 8, 8] and labels."""
    images, labels = load_digits(return_X_y=True)
    order = numpy.random.RandomState(0).permutation(len(images))
    images = torch.as_tensor(images[order], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(labels[order], dtype=torch.int64)
    return images[:1297], labels[:1297], images[1297:], labels[1297:]


def mlp(seed: int) -> Network:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in ((64, 256), (256, 128), (128, 10)):
        linear = nn.Linear(wide, narrow)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(narrow, wide, generator=generator) * (2 / wide) ** 0.5)
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    return Network(nn.Sequential(*layers[:-1]), classes=10, stages=("1", "3"))


class Described:
    """What an objective asks of a data set for its parts."""

    classes: int = 10
    shape: Shape = (1, 8, 8)

    def train_size(self) -> int:
        """Training images."""
        return 1297


def trained(
    objective: Objective, seed: int = 0, epochs: int = 60, without: int | None = None, times: int = 1
) -> Network:
    """A network after `epochs` of the objective; its counts and settled parts are kept as an engine keeps them.

    without: a digit whose training images are left out. times: updates in a row on each batch; epochs / times in all.
    Those that several claims compare with are trained once a process.
    """
    once = type(objective) in (Plain, Madry, Generalized)
    return (_once if once else _trained)(objective, seed, epochs, without, times)


def _trained(objective: Objective, seed: int, epochs: int, without: int | None, times: int) -> Network:
    network, (images, labels, _, _) = mlp(seed), digits()
    if without is not None:
        images, labels = images[labels != without], labels[labels != without]
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    position, counts = torch.arange(BATCH), {}
    torch.manual_seed(seed)  # of what parts draw
    parts = {name: part.module for name, part in objective.parts(network, Described()).items()}  # type: ignore[arg-type]
    update, updates = 0, epochs // times * (len(images) // BATCH) * times
    for _ in range(epochs // times):
        order = torch.randperm(len(images), generator=generator)
        for first in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            batch = Batch(images[rows], labels[rows], position, rows)
            for _ in range(times):
                now = at(objective, update, updates)
                loss = now(network, batch, Key(seed).at(update).rows(position), State(dict(counts), parts))
                optimiser.zero_grad()
                loss.total.backward()
                optimiser.step()
                counts |= {name: counts.get(name, 0) + value for name, value in loss.counts.items()}
                with torch.no_grad():
                    now.settle(network, State(dict(counts), parts), loss.sums, update, updates)
                update += 1
    return network.eval()


_once = cache(_trained)


def verdicts(network: Network, attack: Attack | None = None, targets: Tensor | None = None) -> Tensor:
    """[500] of the test images: 1 where right, under an attack (towards `targets`, where given, for its own loss)."""
    _, _, images, labels = digits()
    if attack is not None:
        images = attack(network, images, labels if targets is None else targets, Key(1))
    with torch.no_grad():
        return correct(network(images), labels)


def accuracy(network: Network, attack: Attack | None = None) -> float:
    return float(verdicts(network, attack).mean())


def table(arms: Mapping[str, Callable[[int], Mapping[str, float]]], seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Print a row an arm: mean and standard error over the seeds of whatever it measures of each. One thread.

    Arguments of the command are the arms to be measured; none: all.
    """
    torch.set_num_threads(1)
    for name, arm in arms.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        began = time.monotonic()
        found = [arm(seed) for seed in seeds]
        said = []
        for what in found[0]:
            values = torch.tensor([each[what] for each in found], dtype=torch.float64)
            error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            said.append(f"{what} {float(values.mean()):.3f} +- {error:.3f}")
        print(f"{name}: {', '.join(said)} ({(time.monotonic() - began) / len(seeds):.0f} s a seed)", flush=True)
