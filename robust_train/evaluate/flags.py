"""What is looked at in a network before it is attacked, and the attacks that are made only to look.

After the checks of AutoAttack's authors, whose limits are kept, and the lists of Athalye et al. 2018 (arXiv
1802.00420), Carlini et al. 2019 (arXiv 1902.06705) and Tramer et al. 2020 (arXiv 2002.08347). Where a flag looks
further than AutoAttack's code does, its docstring says so.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robust_train.attacks.autoattack import DRAWS, TARGETS, AutoAttack
from robust_train.attacks.combine import Restarts
from robust_train.attacks.given import counting, sloped
from robust_train.attacks.pgd import PGD
from robust_train.attacks.square import Square
from robust_train.evaluate.accuracy import judged
from robust_train.evaluate.report import Flag
from robust_train.evaluate.trial import CLEAN, Trial, seeded
from robust_train.keyed import Key
from robust_train.losses import correct, cross_entropy, dlr, full, labels_of, margin
from robust_train.models.foreign import Foreign, moded
from robust_train.nouns import Attack, Batch, PerImage, Threat, number
from robust_train.threats.ball import Ball
from robust_train.threats.linf import Linf

RANDOM = "randomised"
APART = 1e-4  # distance of unit logits from which two forwards differ, as AutoAttack has it
MIXED = 1e-3  # the same between an image alone and among others, where sizes round differently
LOST = 0.1  # share of the right images whose loss float32 loses
ASTRAY = 0.1  # share of the right images on which the loss falls along its own gradient
STEPS = 1e2  # steps of float32 between the logits of an image, below which their differences are rounding
RADII = (0.25, 0.5, 0.75, 1.0)  # shares of eps at which the loss along its gradient is looked at
GRADIENTS = {inspect.unwrap(made).__code__ for made in (torch.autograd.grad, torch.autograd.backward)}

MORE = 10  # times the figure's steps, where more steps are tried
AGAIN = 5  # starts, where more starts are tried
NOISES = 50  # draws of noise an image
BOX = 50  # steps of the attack that may do anything


def looked(
    network: Any,
    batch: Batch,
    classes: int,
    key: Key,
    threats: Sequence[tuple[str, Threat]] = (),
    attack: str = "pgd",
) -> tuple[Flag, ...]:
    """Every flag that a look at some images can raise; threats: the threat models by their tags.

    The network is as the caller gave it, and is left so. Costs 11 forwards, and 12 more and four gradients for each
    threat model; 20 times the latter for a network with randomness of its own.
    """
    network = moded(network)
    mode = set_to_train(network)
    with judged(network), seeded(network, key.of("looked"), batch):
        randomised = random_forward(network, batch)
        chance = bool(randomised.raised)
        return (
            randomised,
            train_mode(network, batch, mode, chance),
            probabilities(network, batch),
            autograd_inside(network, batch),
            too_few_classes(classes, attack, threats, chance),
            precision(network, batch, chance),
            *(zero_gradients(network, batch, tag, threat, key) for tag, threat in threats),
            *(loss_falls(network, batch, tag, threat, DRAWS if chance else 1) for tag, threat in threats),
            *(finite_gradients(network, batch, tag, threat, key) for tag, threat in threats),
        )


def random(seen: tuple[Flag, ...]) -> bool:
    """Whether the network was seen to have randomness of its own."""
    return any(flag.name == RANDOM and bool(flag.raised) for flag in seen)


def random_forward(network: Any, batch: Batch, times: int = 5) -> Flag:
    """Forwards that differ: in the number of right images, or in the logits, each image's scaled to length 1."""
    with torch.no_grad():
        logits = [full(network(batch.images)) for _ in range(times)]
    apart = max(_apart(one, logits[0]) for one in logits)
    rights = {int(correct(one, batch.targets).sum()) for one in logits}
    raised = apart > APART or len(rights) > 1
    says = f"{times} forwards of the same images give logits up to {apart:.2g} apart"
    cure = "it is attacked through gradients over draws, and verdicts are means over passes"
    return _flag(RANDOM, raised, says, cure, apart, APART)


def set_to_train(network: Any) -> list[str]:
    """The kinds of modules in train mode whose answers depend on the mode: BatchNorm, dropout, stochastic depth."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    kinds = {type(module).__name__ for module in modules if module.training}
    return sorted(kind for kind in kinds if "batchnorm" in kind.lower() or "drop" in kind.lower())


def train_mode(network: Any, batch: Batch, before: list[str], chance: bool) -> Flag:
    """A network given in train mode, or one whose answer for an image depends on the images beside it.

    before: what was in train mode when the network came. Dropout that eval mode does not end is seen as randomness.
    Not among AutoAttack's checks.
    """
    half, apart = len(batch) // 2, 0.0
    if half and not chance:
        with torch.no_grad():
            whole = full(network(batch.images))
            apart = _apart(torch.cat([full(network(part)) for part in batch.images.tensor_split([half])]), whole)
    raised = bool(before) or apart > MIXED
    says = f"half the images alone and all of them give logits {apart:.2g} apart"
    cure = "verdicts depend on which images share a chunk: give BatchNorm its running statistics"
    if before:
        says, cure = f"it came in train mode ({', '.join(before)})", "it was judged in eval mode: call eval() first"
    return _flag("train mode", raised, says, cure, apart, MIXED)


def probabilities(network: Any, batch: Batch) -> Flag:
    """Outputs in [0, 1] whose rows sum to 1, to 1e-5: a softmax stands at the end, and losses take another."""
    with torch.no_grad():
        outputs = full(network(batch.images))
    off = float((outputs.sum(1) - 1).abs().amax()) if len(batch) else math.inf
    raised = off < 1e-5 and float(outputs.amin()) > -1e-5 and float(outputs.amax()) < 1 + 1e-5
    says = f"rows of outputs are up to {off:.2g} from summing to 1"
    cure = "they are probabilities: give the logits before the softmax, its gradients are flatter than theirs"
    return _flag("probabilities instead of logits", raised, says, cure, off, 1e-5)


def autograd_inside(network: Any, batch: Batch) -> Flag:
    """Gradients taken inside a forward: the network optimises something at test time.

    Seen by a profiler, which is told of every Python call, under whatever name torch.autograd's functions were
    imported; in a thread of its own, as it is a thread's and one that was there could not be put back. AutoAttack's
    code goes by names alone, and so also counts others' functions called grad.
    """
    calls = 0

    def watch(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code in GRADIENTS

    def forward() -> None:
        sys.setprofile(watch)
        with torch.no_grad():
            network(batch.images)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(forward).result()
    cure = "gradients through an optimisation are unreliable: attack all its steps unrolled, and by transfer"
    return _flag("dynamic", calls > 0, f"one forward takes {calls} gradients", cure, float(calls), 0.0)


def too_few_classes(classes: int, attack: str, threats: Sequence[tuple[str, Threat]], chance: bool) -> Flag:
    """Fewer classes than the attacks of the version or their targets need: 3 for DLR, 4 for its targeted form."""
    name = "too few classes"
    if attack.startswith("autoattack"):
        version = "rand" if chance else attack.partition("-")[2] or "standard"
        whole = [AutoAttack(threat, version) for _, threat in threats if isinstance(threat, Ball)]  # type: ignore[arg-type]
        raised, least = any(one.cut(classes) for one in whole), 3 if version == "rand" else TARGETS + 1
    elif attack == "apgd-t":
        raised, least = classes <= TARGETS, TARGETS + 1
    else:
        return Flag(name, False, f"{attack} needs no more than the network's {classes} classes", float(classes))
    says = f"{attack} is meant for {least} classes and more, and the network has {classes}"
    cure = "some of its attacks or targets are left out, so the figure is not the one of its name"
    return _flag(name, raised, says, cure, float(classes), float(least))


def precision(network: Any, batch: Batch, chance: bool) -> Flag:
    """Right images whose loss float32 cannot tell from that of the points around it.

    The softmax of float32 is off by more than half of dl/dz = softmax z - y (the label's term cancels from a gap of
    17 on, all of it from 104 on); or all logits lie within 100 steps of float32 at max(|z|, ln K), where differences
    of the loss are rounding; or logits differ by a tenth of their spread from those of the network in float64, where a
    copy of it can be made so. Not among AutoAttack's checks.
    """
    with torch.no_grad():
        logits = full(network(batch.images))
    labels = _labels(batch)
    right = correct(logits, labels).bool()
    z = logits.double()
    spread = z.amax(1) - z.amin(1)
    exact, seen = (one.softmax(1).double() - nn.functional.one_hot(labels, z.shape[1]) for one in (z, logits))
    saturated = (seen - exact).norm(dim=1) >= 0.5 * exact.norm(dim=1)
    level = z.abs().amax(1).clamp(min=math.log(z.shape[1]))
    coarse = spread < STEPS * torch.finfo(torch.float32).eps * level
    doubled = None if chance else _doubled(network, batch.images)
    rough = torch.zeros_like(right) if doubled is None else (doubled - z).abs().amax(1) > 0.1 * spread
    share = _share(saturated | coarse | rough, right)
    parts = [("saturated", saturated), ("too close", coarse), ("unlike float64's", rough)]
    says = "logits are " + ", ".join(f"{what} on {_share(rows, right):.0%}" for what, rows in parts)
    says += " of the right images" + (" (no copy in float64 could be made)" if doubled is None and not chance else "")
    cure = "float32 loses the loss that attacks climb: scale the logits, look at apgd-dlr and apgd-t"
    return _flag("single precision", share > LOST, says, cure, share, LOST)


def zero_gradients(network: Any, batch: Batch, tag: str, threat: Threat, key: Key) -> Flag:
    """Right images with a gradient that is 0 in every pixel, of the cross-entropy or the DLR, at a start in the ball.

    One is enough, as in AutoAttack's code, which looks at the start of whichever of APGD's losses it runs. That code
    also counts images that are wrong at their start, where the DLR is flat if the label is third.
    """
    with torch.no_grad():
        logits = full(network(batch.images))
    right = correct(logits, batch.targets).bool()
    started = threat.apply(batch.images, threat.start(batch.images, key.of("looked").rows(batch.sample)))
    losses: dict[str, PerImage] = {"cross-entropy": cross_entropy}
    if logits.shape[1] > 2:
        losses["DLR"] = lambda outputs, targets: dlr(outputs, _labels(batch))
    shares = {}
    for name, loss in losses.items():
        gradient, stands = _gradient(network, started, batch.targets, loss, 1)
        shares[name] = _share((gradient.flatten(1).abs().sum(1) == 0) & stands, right)
    share = max(shares.values())
    says = " and ".join(f"the {name} has no gradient on {part:.1%}" for name, part in shares.items())
    cure = "from there gradients lead nowhere: look at square, use BPDA where a step is not differentiable"
    return _flag(f"{tag}: zero gradients", share > 0, f"{says} of the right images", cure, share, 0.0)


def finite_gradients(network: Any, batch: Batch, tag: str, threat: Threat, key: Key) -> Flag:
    """Images whose gradient of the cross-entropy is not finite in every pixel: at the image itself, at a random start.

    One is enough. A root of a black pixel, a norm of zero. Not among AutoAttack's checks.
    """
    started = threat.apply(batch.images, threat.start(batch.images, key.of("looked").rows(batch.sample)))
    with counting() as faults:
        for points in (batch.images, started):
            _gradient(network, points, batch.targets, cross_entropy, 1)
    says = f"gradients are not finite at {faults.share:.2%} of the images and of the starts"
    cure = (
        "attacks take 0 for such entries and go on by the others, weaker than they could be: give the network a finite "
        "slope there (sqrt(x + 1e-6)), look at square"
    )
    return _flag(f"{tag}: gradients not finite", faults.share > 0, says, cure, faults.share, 0.0)


def loss_falls(network: Any, batch: Batch, tag: str, threat: Threat, draws: int) -> Flag:
    """Right images on which one step along the gradient does harm early and not late, or lowers the loss.

    Looked at are 1/4, 1/2, 3/4 of eps and eps. A loss that is nearly linear in the ball only rises. Not among
    AutoAttack's checks.
    """
    gradient, _ = _gradient(network, batch.images, batch.targets, cross_entropy, draws)
    loss, right = _seen(network, batch.images, batch, draws)
    zero, eps, fooled = threat.zero(batch.images), number(threat.eps), torch.zeros_like(right)  # type: ignore[attr-defined]
    for share in RADII:
        points = threat.apply(batch.images, threat.step(batch.images, zero, gradient, share * eps))
        ahead, stands = _seen(network, points, batch, draws)
        fooled = fooled | ~stands
    astray = (ahead < loss) | (fooled & stands)  # an image without a gradient stays where it is, and is neither
    share = _share(astray, right)
    says = f"along its gradient the loss is lower at eps, or the harm undone, on {share:.0%} of the right images"
    cure = "the gradient says little about the ball (shattered, or overfitted to one-step attacks): look at square"
    return _flag(f"{tag}: loss falls with eps", share > ASTRAY, says, cure, share, ASTRAY)


def checks(tag: str, threat: Threat, row: Sequence[Trial], images: int, steps: int, draws: int) -> tuple[Trial, ...]:
    """The attacks that are made only to look, on the first so many images, in one threat model.

    row: the trials of the figure; steps: those of its gradient attack. Those that ask whether more is found are made
    on what stands after the row (noise: after its gradient attacks). With S steps they cost at most 2 S (10 + 5) for
    more steps and starts, 10 S for Square where the row has none, and 130 forwards; those with gradients times `draws`.
    """
    eps = number(threat.eps)  # type: ignore[attr-defined]
    whole = (CLEAN, *(trial.name for trial in row))
    gradients = (CLEAN, *(trial.name for trial in row if not isinstance(trial.attack, Square)))
    size = 2.5 * eps / steps
    made: list[tuple[str, Attack, tuple[str, ...]]] = [
        ("one-step", PGD(threat, 1, eps, start="zero", eot=draws), (CLEAN,)),
        ("more-steps", PGD(threat, MORE * steps, eps / steps, eot=draws), whole),
        ("more-starts", Restarts(PGD(threat, steps, size, eot=draws), AGAIN, draws=draws), whole),
        ("noise", Restarts(PGD(threat, 0, 0.0), NOISES, draws=draws), gradients),
        ("noise-on-all", PGD(threat, 0, 0.0), ()),
        ("attack-on-all", PGD(threat, 10, eps / 4, eot=draws), ()),
    ]
    if isinstance(threat, Ball) and threat.use in ("linf", "l2", "l1") and gradients == whole:
        made.append(("square", Square(threat, MORE * steps, edges=True, draws=draws), whole))
    return tuple(Trial(f"{tag}/check/{name}", attack, after, tag, "check", images) for name, attack, after in made)


def unbounded(images: int, draws: int) -> Trial:
    """An attack that may change every pixel to anything, whatever the threat models. Costs 100 forwards at most."""
    attack = PGD(Linf(1.0), BOX, 2.5 / BOX, start="zero", eot=draws)
    return Trial("box/check/unbounded", attack, (CLEAN,), role="check", images=images)


def _flag(name: str, raised: bool, says: str, cure: str, value: float, limit: float) -> Flag:
    """A flag that was looked for; the remedy is said where it is up."""
    return Flag(name, raised, f"{says}: {cure}" if raised else says, value, limit)


def _labels(batch: Batch) -> Tensor:
    return labels_of(batch.targets)


def _share(rows: Tensor, right: Tensor) -> float:
    """The share of the right images that are among the rows."""
    return float((rows & right).sum()) / max(1, int(right.sum()))


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest distance of an image's logits, each scaled to length 1."""
    unit = [logits / logits.norm(dim=1, keepdim=True).clamp(min=1e-12) for logits in (one, other)]
    far = (unit[0] - unit[1]).norm(dim=1)
    return float(far.amax()) if len(far) else 0.0


def _gradient(network: Any, images: Tensor, targets: Tensor, loss: PerImage, draws: int) -> tuple[Tensor, Tensor]:
    """[B, ...] the gradient of a loss for the images, a sum over draws; [B] whether the last of these was right."""
    total = torch.zeros_like(images)
    with torch.enable_grad():
        for _ in range(draws):
            points = images.detach().clone().requires_grad_()
            logits = full(network(points))
            total += sloped(torch.autograd.grad(loss(logits, targets).sum(), points)[0])
    return total, correct(logits.detach(), targets).bool()


def _seen(network: Any, points: Tensor, batch: Batch, draws: int) -> tuple[Tensor, Tensor]:
    """[B] the cross-entropy at some points, and whether they are right; means over draws."""
    with torch.no_grad():
        logits = [full(network(points)) for _ in range(draws)]
    loss = torch.stack([cross_entropy(one, batch.targets) for one in logits]).mean(0)
    return loss, margin(torch.stack(logits).mean(0), _labels(batch)) > 0


def _doubled(network: Any, images: Tensor) -> Tensor | None:
    """The logits in float64, by a copy of the network; None where no such copy can be made."""
    if not isinstance(network.given if isinstance(network, Foreign) else network, nn.Module):
        return None
    try:
        with torch.no_grad():
            logits = copy.deepcopy(network).double()(images.double())
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return logits if logits.dtype == torch.float64 else None
