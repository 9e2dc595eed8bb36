"""Clean and attacked accuracy over fixed chunks of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from robust_train.keyed import Key
from robust_train.losses import correct
from robust_train.models.foreign import moded
from robust_train.models.network import Network, flagged
from robust_train.nouns import Attack, Batch, Scale
from robust_train.read.errors import ConfigError


def verdicts(network: Any, batch: Batch, attack: Attack | None, key: Key) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and attacked verdicts [B] (1: right), and the adversarial images; a network's own mode is left as found.

    Robust means right on the clean image and on the attacked one. Verdicts are fresh float32 forwards. The key's rows
    are the samples' identities, so a verdict does not depend on the chunk or device that an image is in.
    """
    if attack is not None:
        refuse_unboxed(batch.scale, attack.use)
    network = moded(network)
    with judged(network, key.of("verdict").rows(batch.sample)), torch.no_grad():
        clean = correct(network(batch.images), batch.targets)
        if attack is None:
            return clean, clean, batch.images
        adversarial = attack(network, batch.images, batch.targets, key.rows(batch.sample))
        return clean, clean * correct(network(adversarial), batch.targets), adversarial


def tally(network: Any, batches: Iterable[Batch], attack: Attack | None, key: Key, device, dtype) -> Tensor:
    """[images, right when clean, right when attacked], summed over the batches (float64, on the device)."""
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        if not len(batch):
            continue
        batch = batch.to(device, dtype)
        clean, robust, _ = verdicts(network, batch, attack, key)
        sums += torch.stack([clean.new_tensor(float(len(batch))), clean.sum(), robust.sum()]).double()
    return sums


def refuse_unboxed(scale: Scale, attack: str) -> None:
    """Raise ConfigError where what a network sees does not lie in [0, 1], the box that attacks keep to."""
    if not scale.boxed:
        raise ConfigError(
            f"{attack} keeps to values in [0, 1], but this data set's lie in [{scale.low:g}, {scale.high:g}]: "
            "choose one whose values fit (events: binary=true), or leave the attack out."
        )


@contextmanager
def judged(network: Any, key: Key | None = None) -> Iterator[None]:
    """Eval mode and float32 for a while, the network's own noise drawn from `key`; everything restored exactly."""
    network = moded(network)
    with ExitStack() as stack:
        for module in network.modules():  # several in an ensemble, or one inside a module that is not ours
            if isinstance(module, Network):
                stack.enter_context(module.judged())
        stack.enter_context(flagged(network, False))
        if key is not None:
            stack.enter_context(network.noise(key))
        yield
