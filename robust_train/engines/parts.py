"""The modules that an objective owns: their gradients, optimisers and averages, alike on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from robust_train.engines.average import Averaged, averageable
from robust_train.engines.holding import Holding
from robust_train.engines.optim import build, restore, set_rate, state_of
from robust_train.keyed.mode import Held
from robust_train.models.drops import refuse_unkeyed
from robust_train.models.network import Network
from robust_train.nouns import Part, Place, at
from robust_train.read.errors import CheckpointError, ConfigError, nearest

NETWORK = "network"
"""What `average_of` calls the network that is trained."""


class Parts:
    """Every rank holds all parts and steps them alike, with gradients that are averaged over the ranks.

        for each micro-batch: parts.backward(loss.of, ...)
        parts.reduce(world); squares = parts.squares()
        parts.step(norms, ...), or parts.discard()
        parts.follow(...)

    They are small beside a network, so nothing of them is sharded.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        network: Network,
        updates: int,
        device: torch.device,
        dtype: torch.dtype,
        holding: Callable[[], Holding] | None = None,
    ) -> None:
        self.parts = dict(parts)
        self._holding = holding or (lambda: Holding(network, Place()))  # where the network's weights lie
        for name, part in self.parts.items():
            refuse(name, part, self.parts, network)
        self.modules = {name: part.module.to(device, dtype) for name, part in self.parts.items()}
        self.trained: dict[str, dict[str, nn.Parameter]] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        for name, part in self.parts.items():
            if part.optimiser is None:
                self.modules[name].requires_grad_(False).eval()
            else:
                own = self.modules[name].named_parameters()
                self.trained[name] = {key: parameter for key, parameter in own if parameter.requires_grad}
                self.optimisers[name] = build(part.optimiser, self.modules[name], updates, f"part {name!r}")
        self.averages = {
            name: Averaged(averageable(inner(self.modules[name])))
            for name, part in self.parts.items()
            if part.average_of is not None
        }
        shapes = self._shapes(network) if self.averages else {}
        for name in self.averages:
            self._alike(name, shapes)
        self._gradients: dict[str, list[Tensor]] = {}

    # -- an update --------------------------------------------------------------------------------

    def backward(self, of: Mapping[str, Tensor], share: float, retain: bool) -> None:
        """Add `share` of the gradients that a micro-batch's scalars have in their parts.

        A weight that the scalar does not see has a gradient of zero. retain: whether the graphs are needed afterwards.
        """
        for place, (name, scalar) in enumerate(of.items()):
            if name not in self.trained:
                known = ", ".join(self.trained) or "none"
                raise ConfigError(
                    f"Loss.of names {name!r}, which is no part with an optimiser{nearest(name, self.trained)}; "
                    f"there are: {known}. Give it one in Objective.parts."
                )
            if not scalar.requires_grad:
                raise ConfigError(f"Loss.of[{name!r}] depends on no weight: nothing would train that part.")
            parameters = list(self.trained[name].values())
            found = torch.autograd.grad(
                scalar,
                parameters,
                retain_graph=retain or place + 1 < len(of),
                allow_unused=True,
                materialize_grads=True,
            )
            now = torch._foreach_mul(found, share)
            if name in self._gradients:
                torch._foreach_add_(self._gradients[name], now)
            else:
                self._gradients[name] = list(now)

    def forget(self) -> None:
        """Clear what the network's backward left on parts: only `of` speaks to them."""
        for parameters in self.trained.values():
            for parameter in parameters.values():
                parameter.grad = None

    def reduce(self, world: int) -> None:
        """Average the gradients over the ranks: one flat all-reduce, where there are any."""
        gradients = [gradient for name in sorted(self._gradients) for gradient in self._gradients[name]]
        if world == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / world
        distributed.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def squares(self) -> dict[str, Tensor]:
        """{part: squared norm of its gradient} of those that have one in this update, float64."""
        return {
            name: torch.stack(torch._foreach_norm(self._gradients[name])).double().square().sum()
            for name in sorted(self._gradients)
        }

    def step(self, norms: Mapping[str, float], update: int, updates: int) -> dict[str, float]:
        """One step of each part's optimiser, clipped to its own norm; the rates."""
        rates = {}
        for name, gradients in self._gradients.items():
            chosen = self.parts[name].optimiser
            if chosen.clip and norms[name] > chosen.clip:
                torch._foreach_mul_(gradients, chosen.clip / norms[name])
            for parameter, gradient in zip(self.trained[name].values(), gradients, strict=True):
                parameter.grad = gradient
            rates[name] = at(chosen.lr, update, updates)
            set_rate(self.optimisers[name], rates[name])
            self.optimisers[name].step()
            self.optimisers[name].zero_grad()
        self._gradients = {}
        return rates

    def discard(self) -> None:
        """Forget the gradients; as if the update's backwards had not been."""
        self._gradients = {}

    def follow(self, update: int, updates: int) -> None:
        """Move the averages after an update; one of another average sees it moved if it was named before."""
        with self._followed() as of:
            for name, average in self.averages.items():
                average.follow(of[str(self.parts[name].average_of)], at(self.parts[name].decay, update, updates))

    def begin(self) -> None:
        """Put the averages of the network where it stands: its weights came from elsewhere."""
        with self._followed() as of:
            for name, average in self.averages.items():
                if self.parts[name].average_of == NETWORK:
                    average.follow(of[NETWORK], 0.0)

    @contextmanager
    def _followed(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        """{what: its tensors} of all that averages follow: the network, whole, where one of them follows it; parts."""
        of = {str(self.parts[name].average_of) for name in self.averages}
        found = {name: averageable(inner(self.modules[name])) for name in of - {NETWORK}}
        if NETWORK not in of:
            yield found
            return
        with self._holding().whole() as network:
            yield found | {NETWORK: averageable(network.model)}

    def _shapes(self, network: Network) -> dict[str, dict[str, torch.Size]]:
        """{what: {tensor: its shape}} of the network and of each part."""
        named = {name: averageable(inner(module)) for name, module in self.modules.items()}
        found = {name: {key: value.shape for key, value in tensors.items()} for name, tensors in named.items()}
        return found | {NETWORK: {key: value.shape for key, value in averageable(network.model).items()}}

    def _alike(self, name: str, shapes: Mapping[str, Mapping[str, torch.Size]]) -> None:
        """ConfigError where an average has other tensors than what it follows."""
        of = self.parts[name].average_of
        if shapes[name] != shapes[str(of)]:
            raise ConfigError(
                f"part {name!r} is an average of {of!r} and has other weights than it. Give it a copy: "
                "copy.deepcopy of the network, or of that part's module."
            )

    # -- checkpoints ------------------------------------------------------------------------------

    def held(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors, by PART/weights/NAME and PART/optimiser/PARAMETER/KEY; and the optimisers' numbers alike."""
        tensors = self._weights()
        numbers: dict[str, Any] = {}
        for name, parameters in self.trained.items():
            for key, parameter in parameters.items():
                for kind, value in state_of(self.optimisers[name], parameter).items():
                    (tensors if isinstance(value, Tensor) else numbers)[f"{name}/optimiser/{key}/{kind}"] = value
        return tensors, numbers

    def hold(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any], source: str) -> None:
        """Take back what `held` gave. CheckpointError where it is of other parts."""
        own = self._weights()
        saved = {path: value for path, value in tensors.items() if path.split("/")[1] == "weights"}
        unlike = sorted(
            path
            for path in {*own, *saved}
            if path not in own or path not in saved or own[path].shape != saved[path].shape
        )
        if unlike:
            raise CheckpointError(
                f"{source} holds other parts of the objective than the run's: {', '.join(unlike[:3])} differ. Go on "
                "with the objective that it was saved with, or begin anew with start=."
            )
        with torch.no_grad():
            for path, value in own.items():
                value.copy_(saved[path])
        for name, parameters in self.trained.items():
            for key, parameter in parameters.items():
                before = f"{name}/optimiser/{key}/"
                state = {p.removeprefix(before): v for p, v in {**tensors, **numbers}.items() if p.startswith(before)}
                restore(self.optimisers[name], parameter, state)

    def _weights(self) -> dict[str, Tensor]:
        """{PART/weights/NAME: tensor} of all parts, each tensor once."""
        found = {}
        for name, module in self.modules.items():
            seen: set[tuple[int, int]] = set()  # of tied weights the first name stands for all
            for key, value in module.state_dict().items():
                lies = (value.data_ptr(), value.numel())
                if value.numel() == 0 or lies not in seen:
                    found[f"{name}/weights/{key}"] = value
                seen.add(lies)
        return found


def inner(module: nn.Module) -> nn.Module:
    """What of a module is averaged: of a Network the model in it."""
    return module.model if isinstance(module, Network) else module


def refuse(name: str, part: Part, parts: Mapping[str, Part], network: Network) -> None:
    """ConfigError where a part cannot be trained alike on every rank."""
    where, module = f"part {name!r} of the objective", part.module
    if not name or "/" in name or name == NETWORK:
        raise ConfigError(f"{where}: a part's name is not empty, has no slash and is not {NETWORK!r}.")
    theirs = _storages(network)
    for other, second in parts.items():
        if other != name:
            theirs |= _storages(second.module)
    if _storages(module) & theirs:
        raise ConfigError(
            f"{where} is a piece of the network or of another part, or shares weights with it: two would move them, "
            "or one freeze them. Give it a copy: copy.deepcopy of the module."
        )
    unled = _unled(module)
    if unled:
        raise ConfigError(
            f"{where}: layers {', '.join(unled[:3])} do as their network's mode says, and no network is around them "
            "to be told. Give a copy of the network itself: copy.deepcopy(network)."
        )
    if part.average_of is not None:
        if part.average_of != NETWORK and part.average_of not in parts:
            raise ConfigError(f"{where}: average_of={part.average_of!r} is neither {NETWORK!r} nor another part.")
        if part.average_of == name:
            raise ConfigError(f"{where}: it cannot be the average of itself. Name what it follows.")
        return
    for key, layer in module.named_modules():
        buffers = dict(layer.named_buffers(recurse=False))
        if part.optimiser is None and "running_mean" in buffers:
            continue  # in eval mode it sees every image alone
        if {"running_mean", "running_var"} & set(buffers) or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{where}: layer {key!r} ({type(layer).__name__}) normalises by the images that a rank "
                "happens to hold, so its numbers would depend on the ranks. Take GroupNorm or LayerNorm."
            )
    try:
        refuse_unkeyed(module)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if part.optimiser is None:
        return
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"{where} has an optimiser and no weights to train. Leave the optimiser out.")


def _storages(module: nn.Module) -> set[int]:
    """Where the weights and buffers of a module lie."""
    tensors = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}


def _unled(module: nn.Module) -> list[str]:
    """Names of the layers that read a network's mode and lie in no network."""
    led = {layer for network in module.modules() if isinstance(network, Network) for layer in network.modules()}
    return [
        repr(name)
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "held", None), Held) and layer not in led
    ]
