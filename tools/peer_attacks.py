"""The attacks of other packages, each as (network, images, targets) -> adversarial images, at budgets that are ours.

`make peers` installs the packages; nothing here is imported by the library. Every call runs on the images' device,
leaves torch's own random state as it was, and expects a network in eval mode: pixels in [0, 1] to logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_train.nouns import number
from robust_train.read.errors import ConfigError
from robust_train.threats.ball import Ball

Theirs = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(network, images [B, C, H, W] in [0, 1], labels [B]) -> adversarial images."""

Single = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
STANDARD: tuple[Single, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS: tuple[Single, ...] = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")


def peer(package: str) -> Any:
    """The package, or a module of it. Raises ConfigError where it is not installed."""
    name = package.partition(".")[0]
    if find_spec(name) is None:
        raise ConfigError(f"{name} is not installed here: `make peers` installs it, or leave its rows out (--rows)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox asks scipy for a namespace that is going
        return import_module(package)


def torchattacks_fgsm(threat: Ball) -> Theirs:
    """torchattacks.FGSM."""

    def attack(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return peer("torchattacks").FGSM(network, eps=number(threat.eps))(images, targets)

    return attack


def torchattacks_pgd(threat: Ball, steps: int, step_size: float) -> Theirs:
    """torchattacks.PGD or PGDL2, from the image itself.

    Its loss is the batch's mean, ours the sum: steps are the same but for rounding, and for L2 where a gradient is so
    small that the 1e-10 it adds to the norm counts.
    """

    def attack(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        kind = getattr(peer("torchattacks"), {"linf": "PGD", "l2": "PGDL2"}[threat.use])
        found = kind(network, eps=number(threat.eps), alpha=step_size, steps=steps, random_start=False)
        return found(images, targets)

    return attack


def foolbox_pgd(threat: Ball, steps: int, step_size: float) -> Theirs:
    """Foolbox's LinfPGD or L2PGD, from the image itself.

    It calls backward(): weights that are trainable get gradients too, half as much work again.
    """

    def attack(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        foolbox = peer("foolbox")
        kind = getattr(foolbox.attacks, {"linf": "LinfPGD", "l2": "L2PGD"}[threat.use])
        found = kind(abs_stepsize=step_size, steps=steps, random_start=False)
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=images.device)
        return found.run(model, images, foolbox.Misclassification(targets), epsilon=number(threat.eps))

    return attack


def pyautoattack(
    threat: Ball, which: Single, steps: int = 100, goals: int = 9, queries: int = 5000, seed: int = 0
) -> Theirs:
    """One attack of pyautoattack, one run of it (a run a goal for the targeted ones).

    steps: gradients of a run; goals: classes a targeted attack tries, fewer than the classes; queries: of square.
    Images that are wrong from the start come back as they were.
    """

    def attack(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        whole = _autoattack(network, images.device, threat, (which,), steps, goals, queries, seed)
        one = {"apgd": whole.apgd, "apgd-t": whole.apgd_targeted, "fab": whole.fab, "square": whole.square}[
            which if which == "apgd-t" else which.partition("-")[0]
        ]
        if which in ("apgd-ce", "apgd-dlr"):
            one.loss = which.removeprefix("apgd-")
        if which in ("fab", "fab-t"):
            one.targeted = which == "fab-t"
        with _own_draws(images.device), torch.no_grad():  # as in its own cascade; it enables gradients itself
            return one.perturb(images, targets)

    return attack


def pyautoattack_whole(
    threat: Ball,
    attacks: Sequence[Single] = STANDARD,
    steps: int = 100,
    goals: int = 9,
    queries: int = 5000,
    seed: int = 0,
    restarts: int | None = None,
) -> Theirs:
    """The cascade of pyautoattack: each attack on the images that all before it left right, in one batch.

    As it stands this is its standard version, to the bit; with PLUS and five restarts its version plus, whose targeted
    FAB has as many, being the same object. Images that it did not fool come back clean.
    """

    def attack(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        whole = _autoattack(network, images.device, threat, attacks, steps, goals, queries, seed, restarts)
        with _own_draws(images.device):
            return whole.run_standard_evaluation(images, targets, batch_size=len(images))[0]

    return attack


def _autoattack(
    network: nn.Module,
    device: torch.device,
    threat: Ball,
    attacks: Sequence[Single],
    steps: int,
    goals: int,
    queries: int,
    seed: int,
    restarts: int | None = None,
) -> Any:
    """pyautoattack's object with the budgets of its standard version, or those said.

    restarts: of untargeted APGD and both kinds of FAB; None: those of the standard version.
    """
    package = peer("pyautoattack.autopgd_base")
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.use]
    eps, large = number(threat.eps), norm == "L1"  # for L1 from a ball three times as large, five starts or goals
    found = peer("pyautoattack").AutoAttack(
        network, attacks=list(attacks), version="custom", norm=norm, eps=eps, seed=seed, device=device
    )
    # the checkpoints of the step size follow from n_iter in the constructor alone: setting n_iter later keeps them
    same = {"norm": norm, "eps": eps, "n_iter": steps, "seed": seed, "device": device, "logger": found.logger}
    found.apgd = package.APGDAttack(network, n_restarts=restarts or (5 if large else 1), use_largereps=large, **same)
    found.apgd_targeted = package.APGDAttack_targeted(
        network, n_target_classes=min(goals, 5) if large else goals, use_largereps=large, **same
    )
    found.fab.n_restarts, found.fab.n_iter, found.fab.n_target_classes = restarts or 1, steps, goals
    found.square.n_queries = queries
    return found


def _own_draws(device: torch.device) -> Any:
    """pyautoattack seeds torch's global generators: they are put back."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
