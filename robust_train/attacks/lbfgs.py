"""The first attack of all: the nearest image of another class, by box-constrained L-BFGS in float64."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_train.attacks.attacked import noised
from robust_train.attacks.chance import answer, refuse_draws
from robust_train.attacks.given import sloped
from robust_train.attacks.nearest import Nearest, NearestAttack, measured, measuring, wrong_classes
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, labels_of
from robust_train.models.foreign import Foreign
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

CORRECTIONS = 10  # pairs that L-BFGS remembers
LEAST, FIRST, MOST = -10, -2, 10  # log10 kappa: where the search ends below, begins, and ends above
PRECISE = 1e-9  # change of the value and gradient at which a solve ends


@attacks.register("lbfgs")
@dataclass(frozen=True)
class LBFGS(NearestAttack):
    """Box-constrained L-BFGS: the smallest L2 perturbation that lands on a chosen class.

        r(kappa) = argmin ||r||_2^2 + kappa H(t, softmax f(x + r)),    x + r in [0, 1],    the least kappa that lands

    kappa goes from 0.01 up or down by tens until one value lands and its neighbour does not, and is bisected between
    them on a logarithmic scale; every solve starts at the image, since from the last solution it ends in poorer minima.
    Of the points that land the nearest is kept. Szegedy et al. 2014 (arXiv 1312.6199, section 4.1), who put their c on
    the distance and so want the largest: c = 1 / kappa. Solved image by image by SciPy's L-BFGS-B on a float64 copy of
    the network (in float32 its line search gives up); whether a point lands is the network's own word. A function that
    is no module is taken in the images' precision.

    Costs about (2 steps + 1) draws forwards a solve, with max(1, targets) (13 + bisections) solves at most; few images.
    """

    threat: Ball  # l2, whose norm is made small
    steps: int = 100  # gradients of a solve; SciPy may end its last line search beyond them
    bisections: int = 10  # solves between a kappa that lands and one that does not
    targets: int = 0  # 0: a wrong class drawn for each image; else so many of the likeliest ones, the nearest kept
    draws: int = 1  # passes averaged a look, over the network's own randomness: 20 where it draws noise

    sets_aside = True
    examples = """
    - {threat: {use: l2, eps: 0.5}, steps: 3, bisections: 1}
    - {threat: {use: l2, eps: 0.5}, steps: 3, bisections: 0, targets: 2}
    """

    def __post_init__(self) -> None:
        if self.threat.use != "l2":
            raise ValueError(f"threat={self.threat.use}: lbfgs makes the L2 norm small; give it l2")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1: it counts the gradients of a solve")
        refuse_draws(self)
        if self.bisections < 0 or self.targets < 0:
            raise ValueError(f"bisections={self.bisections} and targets={self.targets} must not be negative")

    @property
    def label(self) -> str:
        return "lbfgs"

    def cost(self) -> float:
        return max(1, self.targets) * (13 + self.bisections) * (2 * self.steps + 1) * self.draws + self.draws + 1

    def nearest(self, network: Any, images: Tensor, targets: Tensor, key: Key, within: float | None = None) -> Nearest:
        """The nearest points that land on their class, or on the nearest class of those tried."""
        labels = labels_of(targets)
        points, near = images.clone(), -1.0 if within is None else within
        key = key if key.row is not None else key.rows(torch.arange(len(images), device=images.device))
        with measuring(network, key):
            precise = _precise(network)  # held as the network is: frozen, without dropout
            with torch.no_grad():
                logits = answer(network, images, self.draws)
            goals = self._goals(key, logits, labels)
            for row in (correct(logits, labels) == 1).nonzero().flatten().tolist():
                nearest = torch.inf
                own = key[row : row + 1].of("image")
                for goal in goals[row].split(1):
                    solver = _Solver(network, precise, images[row : row + 1], goal, self.steps, self.draws)
                    with noised(network, own), nullcontext() if precise is network else noised(precise, own):
                        solver.search(self.bisections, near, nearest)
                    if solver.distance < nearest:
                        nearest, points[row] = solver.distance, solver.point[0]
                    if nearest <= near:
                        break
            return measured(self.threat, network, images, targets, points, key)

    def _goals(self, key: Key, logits: Tensor, labels: Tensor) -> Tensor:
        """[B, goals] the classes to land on."""
        if not self.targets:
            return wrong_classes(key.of("goal"), labels, logits.shape[1])[:, None]
        rest = logits.scatter(1, labels[:, None], -torch.inf)
        return rest.topk(min(self.targets, logits.shape[1] - 1), dim=1).indices


class _Solver:
    """The search for the least kappa that lands one image on one class."""

    def __init__(self, network: Any, precise: Any, image: Tensor, goal: Tensor, steps: int, draws: int) -> None:
        self.network, self.precise, self.image, self.goal, self.steps = network, precise, image, goal, steps
        self.draws = draws
        self.start = image.detach().double().flatten().cpu().numpy()
        self.dtype = image.dtype if precise is network else torch.float64
        self.point, self.distance = image, float(np.inf)  # the nearest that landed
        self.moved = 0.0  # how far the last solution is from the image

    def search(self, bisections: int, near: float, far: float) -> None:
        """Fill in `point` and `distance`.

        The search ends with a point nearer than `near`, or where even a kappa that does not land moves the image by
        more than `far`: ||r|| grows with kappa.
        """
        low, high = -np.inf, np.inf  # log10 of a kappa that does not land, of one that does
        power = float(FIRST)
        while bisections >= 0:
            if self._lands(power):
                high = power
            elif self.moved >= far:
                return
            else:
                low = power
            if self.distance <= near or (power <= LEAST and high == power) or (power >= MOST and low == power):
                return
            if np.isinf(low) or np.isinf(high):
                power += 1 if np.isinf(high) else -1
            else:
                power, bisections = (low + high) / 2, bisections - 1

    def _lands(self, power: float) -> bool:
        """Whether the solution for kappa = 10^power is taken for the class, by the network itself."""
        from scipy.optimize import Bounds, minimize

        solved = minimize(
            self._value,
            self.start,
            args=(10.0**power,),
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(0, 1),
            options={"maxcor": CORRECTIONS, "maxfun": self.steps, "ftol": PRECISE, "gtol": PRECISE},
        )
        point = torch.from_numpy(solved.x).to(self.image).view_as(self.image)
        with torch.no_grad():
            landed = correct(answer(self.network, point, self.draws), self.goal) == 1
        self.moved = float((point - self.image).double().norm())
        if landed.item() and self.moved < self.distance:
            self.point, self.distance = point, self.moved
        return bool(landed.item())

    def _value(self, place: np.ndarray, kappa: float) -> tuple[float, np.ndarray]:
        """||r||_2^2 + kappa H(t, softmax f(x + r)) and its gradient, float64 [n]."""
        point = torch.from_numpy(place).to(self.image.device, self.dtype).view_as(self.image).requires_grad_()
        loss = cross_entropy(answer(self.precise, point, self.draws), self.goal).sum()
        slope = sloped(torch.autograd.grad(loss, point)[0])
        moved = place - self.start
        value = float(moved @ moved) + kappa * float(loss.detach())
        return value, 2 * moved + kappa * slope.double().flatten().cpu().numpy()


def _precise(network: Any) -> Any:
    """A float64 copy of a module; a function as it is."""
    module = network.given if isinstance(network, Foreign) else network
    return deepcopy(network).double() if isinstance(module, nn.Module) else network
