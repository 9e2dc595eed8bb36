"""Two players, Oja's rule and a penalised gradient in plain PyTorch: what every engine must follow."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_train.engines.plain import PlainEngine
from robust_train.keyed import Key
from robust_train.nouns import Place
from robust_train.run import Run
from tests.engines.players import BOUND, MEMORY

Curve = list[dict[str, Tensor]]


def restated(run: Run) -> Curve:
    """All weights after each update of Players, or of Turns, by momentum, AdamW and averages written out."""
    made = PlainEngine(run, dtype=torch.float64)  # for what parts begin with
    network, teacher, head = (
        deepcopy(m) for m in (made.module, made.parts.modules["teacher"], made.parts.modules["head"])
    )
    z, m = (
        made.parts.modules[n].get_parameter(p).detach().clone()
        for n, p in (("generator", "z"), ("multiplier", "value"))
    )
    memory = made.parts.modules["memory"].z.detach().clone()
    weights = list(network.parameters())
    moments: dict[Any, Tensor] = {}
    steps, found = 0, []
    for update, batch in zip(range(run.updates), run.batches(Place(), 0), strict=False):
        batch = batch.to("cpu", torch.float64)
        rests = run.objective.use == "turns" and update % 2 == 1
        z.requires_grad_(), m.requires_grad_()
        for module in (network, head):
            module.requires_grad_()
        with network.drops(Key(run.seed).at(update).rows(batch.position).of("drops")):
            attacked, clean = network(batch.images + z), network(batch.images)
        fooled, headed = F.cross_entropy(attacked, batch.targets), F.cross_entropy(head(clean), batch.targets)
        total = fooled + headed + (clean - teacher(batch.images).detach()).square().mean()
        up_z = torch.autograd.grad(fooled - m * z.square().mean(), z, retain_graph=True)[0]
        down_h = torch.autograd.grad(headed, list(head.parameters()), retain_graph=True)
        down = torch.autograd.grad(total, weights)
        with torch.no_grad():
            excess = z.square().mean() - BOUND
            if not rests:
                norm = torch.stack([g.square().sum() for g in down]).sum().sqrt()
                for w, g in zip(weights, down, strict=True):
                    g = g * min(1.0, run.optimiser.clip / float(norm)) + 1e-3 * w * (w.dim() > 1)
                    moments[w] = 0.9 * moments.get(w, torch.zeros_like(w)) + g
                    w -= 0.02 * moments[w]
                steps += 1
                for w, g in zip(head.parameters(), down_h, strict=True):
                    a, b = moments.get((w, 0), torch.zeros_like(w)), moments.get((w, 1), torch.zeros_like(w))
                    moments[w, 0], moments[w, 1] = 0.9 * a + 0.1 * g, 0.999 * b + 0.001 * g * g
                    w *= 1 - 0.01 * 0.1 * (w.dim() > 1)
                    w -= (
                        0.01 * (moments[w, 0] / (1 - 0.9**steps)) / ((moments[w, 1] / (1 - 0.999**steps)).sqrt() + 1e-8)
                    )
            if run.objective.use == "players":
                m += 0.1 * update * excess if update < 4 else 0.4 * excess
                m.clamp_(min=0)
            if run.objective.use == "players" or rests:
                up_z = up_z * min(1.0, 0.05 / float(up_z.norm()))
                moments["z"] = 0.9 * moments.get("z", torch.zeros_like(z)) + up_z
                z += 2.0 * moments["z"]
            network.move(None if rests else network.recorded())
            d = 0.5 + 0.4 * min(1.0, update / 4)
            theirs = network.model.state_dict()
            for name, kept in teacher.model.state_dict().items():
                if kept.is_floating_point():
                    kept.copy_(d * kept + (1 - d) * theirs[name])
            memory = MEMORY * memory + (1 - MEMORY) * z
        found.append(
            {f"network/{n}": v.detach().clone() for n, v in network.model.state_dict().items()}
            | {f"teacher/{n}": v.clone() for n, v in teacher.model.state_dict().items() if v.is_floating_point()}
            | {f"head/{n}": v.detach().clone() for n, v in head.state_dict().items()}
            | {
                "generator/z": z.detach().clone(),
                "multiplier/value": m.detach().clone(),
                "memory/z": memory.detach().clone(),
            }
        )
    return found


def standing(engine: Any) -> dict[str, Tensor]:
    """All weights of an engine by the same names."""
    found = {f"network/{n}": v.detach().clone() for n, v in engine.module.model.state_dict().items()}
    for name, module in engine.parts.modules.items():
        for key, value in getattr(module, "model", module).state_dict().items():
            if value.is_floating_point():
                found[f"{name}/{key}"] = value.detach().clone()
    return found
