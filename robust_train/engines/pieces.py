"""What weights that lie in pieces on the ranks (engine.zero=3) cannot do: refused before the first update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from robust_train.models.network import Network
from robust_train.nouns import Attack, within
from robust_train.read.errors import ConfigError
from robust_train.run import Run
from robust_train.threats.weights import Weights


def refuse_pieces(run: Run) -> None:
    """ConfigError for what a run says that cannot be done under ZeRO 3."""
    if run.engine.zero < 3:
        return
    use = run.objective.use
    if any(True for _ in within(run.objective, Weights)):  # which a rehearsal may not come to
        raise ConfigError(
            f"objective {use} perturbs weights, for which it needs whole tensors and a graph through them, and "
            "engine.zero=3 leaves a piece of each on this rank. Use engine.zero=2 or below."
        )
    uneven = next((attack for attack in attacks_in(run.objective) if attack.sets_aside), None)
    if uneven is not None and not run.engine.copy:
        raise ConfigError(
            f"objective {use}: {uneven.use} sets images aside that have fallen, so ranks do unlike numbers of "
            "forwards, and under engine.zero=3 each gathers weights from all of them: they would wait for ever. Set "
            "engine.copy=true, which attacks a whole copy, or use engine.zero=2 or below."
        )
    if run.compile:
        raise ConfigError(
            "compile=true under engine.zero=3: a compiled network calls its layers without the hooks that gather their "
            "weights. Leave it out, or use engine.zero=2 or below."
        )


def attacks_in(value: Any) -> Iterator[Attack]:
    """All attacks in a value, those inside others too."""
    for _, attack in within(value, Attack):
        yield attack
        if is_dataclass(attack):
            for f in fields(attack):
                yield from attacks_in(getattr(attack, f.name))


@contextmanager
def in_pieces(run: Run, network: Network) -> Iterator[None]:
    """Let an objective meet, under ZeRO 3, a network as its weights will lie in training, whole ones here or not.

    ConfigError where it asks for weights outside a forward, and for a gradient that is taken to be differentiated
    again through the network: DeepSpeed lets go of a layer's weights when its backward is done, and a second backward,
    through the first one, would find none. Entered while an update is rehearsed: no objective has to declare it.
    """
    if run.engine.zero < 3:
        yield
        return
    own = set(map(id, network.parameters()))
    grad: Any = torch.autograd.grad

    def watched(outputs: Any, *args: Any, create_graph: bool = False, **kwargs: Any) -> Any:
        given = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        if create_graph and _sees(given, own):
            raise ConfigError(
                f"objective {run.objective.use} differentiates a gradient by its input again (create_graph), and under "
                "engine.zero=3 a layer's weights are let go of when its first backward is done: the second would find "
                "none. Use engine.zero=2 or below."
            )
        return grad(outputs, *args, create_graph=create_graph, **kwargs)

    with mock.patch.object(torch.autograd, "grad", watched), mock.patch.object(network, "cut", True):
        yield


def _sees(outputs: Iterable[Tensor], parameters: set[int]) -> bool:
    """Whether the graph of some outputs ends in one of the parameters."""
    left = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(left)
    while left:
        node: Any = left.pop()
        if id(getattr(node, "variable", None)) in parameters:
            return True
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                left.append(further)
    return False
