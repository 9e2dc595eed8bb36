"""The plain engine: PyTorch alone, in one process or in a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from robust_train.engines.engine import Engine
from robust_train.models.network import Network
from robust_train.nouns import Place

if TYPE_CHECKING:
    from robust_train.run import Run


class PlainEngine(Engine):
    """Plain PyTorch. With more than one rank, gradients are averaged in one flat all-reduce an update."""

    def __init__(self, run: Run, place: Place | None = None) -> None:
        super().__init__(run, place or Place())
        self.optimiser = run.optimiser.build(self.module)
        self.trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.averaged = run.average.start(self) if run.average is not None else None

    @property
    def network(self) -> Network:
        return self.module

    def _backward(self, loss: Tensor, last: bool) -> None:
        (loss / self._count).backward()

    def _reduce_gradients(self) -> None:
        if self.place.world == 1:
            return
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]) / self.place.world
        distributed.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def _squared_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).double()
        return norms.square().sum() / self.place.world

    def _update(self, norm: float) -> None:
        clip = self.run.optimiser.clip
        if clip and norm > clip:
            torch._foreach_mul_([p.grad for p in self.trained if p.grad is not None], clip / (norm + 1e-6))
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _discard(self) -> None:
        self.optimiser.zero_grad()

    def all_reduce(self, values: Tensor) -> Tensor:
        if self.place.world > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        if self.place.world == 1:
            return [value]
        values: list[Any] = [None] * self.place.world
        distributed.all_gather_object(values, value)
        return values

    def optimiser_state(self, name: str) -> dict[str, Any]:
        return dict(self.optimiser.state.get(self.parameters()[name], {}))

    def set_optimiser_state(self, name: str, state: dict[str, Any]) -> None:
        parameter = self.parameters()[name]
        if state:
            self.optimiser.state[parameter] = {
                key: value.to(value.device if key == "step" else parameter.device) if isinstance(value, Tensor) else value
                for key, value in state.items()
            }

    def weights_changed(self) -> None:
        """The optimiser works on the parameters themselves: nothing follows."""
