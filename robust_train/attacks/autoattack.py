"""AutoAttack: four attacks in a row, each on the images that the ones before it left standing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from robust_train.attacks.apgd import APGD
from robust_train.attacks.chance import judged, passes
from robust_train.attacks.fab import FAB
from robust_train.attacks.nearest import measuring
from robust_train.attacks.sight import refuse
from robust_train.attacks.square import Square
from robust_train.attacks.standing import Cascade, Verdict
from robust_train.keyed import Key
from robust_train.nouns import Attack, Goal
from robust_train.read.registry import attacks
from robust_train.threats.ball import Ball

Version = Literal["standard", "plus", "rand", "custom"]
STEPS, QUERIES, TARGETS, DRAWS = 100, 5000, 9, 20


@attacks.register("autoattack")
@dataclass(frozen=True)
class AutoAttack(Attack):
    """The worst of several attacks in a row, each on the images still standing: the field's common measure.

        standard   apgd-ce, apgd-t, fab-t, square           9 targets, 100 steps, 5,000 queries
        plus       apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t           5 restarts of the first three
        rand       apgd-ce, apgd-dlr, gradients averaged over 20 draws     for networks with their own randomness
        custom     the attacks that are named

    Croce and Hein 2020 (arXiv 2003.01690, section 5); for L1 2021 (arXiv 2103.01208): 5 restarts of apgd-ce and 5
    targets of apgd-t, from wider radii inward; as in the authors' code plus and rand do without both there. K classes
    have K - 1 targets at most; below 4 the targeted DLR does not exist and below 3 the DLR neither, and those attacks
    are left out: `cut` says that this is not the version it is called.
    With noise of its own a network is judged by the mean of 100 passes, the same draws for all points: an image is left
    out where none of them is right, and the worst point is the one that is right least often.
    Costs at most what its attacks do; for the standard version 9,700 forwards for an image that stands.
    """

    threat: Ball  # where it searches: linf, l2 or l1
    version: Version = "standard"  # which attacks
    attacks: tuple[Attack, ...] = ()  # those of the version custom

    sets_aside = True
    examples = """
    - {threat: {use: linf, eps: 0.1}, version: custom, attacks: [{use: fgsm, threat: {use: linf, eps: 0.1}}, {use: pgd,
      threat: {use: linf, eps: 0.1}, steps: 2, step_size: 0.05}]}
    """

    def __post_init__(self) -> None:
        if (self.version == "custom") != bool(self.attacks):
            raise ValueError(
                f"version={self.version} with {len(self.attacks)} attacks: name attacks with version=custom and only "
                "then"
            )

    def members(self, classes: int) -> tuple[Attack, ...]:
        """The attacks in their order, as far as so many classes allow."""
        threat, sparse = self.threat, self.threat.use == "l1"
        targets = min(TARGETS, classes - 1)
        ce = APGD(threat, STEPS, "ce", restarts=5 if sparse else 1)
        towards = APGD(threat, STEPS, targets=min(targets, 5) if sparse else targets)
        if self.version == "standard":
            made: tuple[Attack, ...] = (ce, towards, FAB(threat, STEPS, targets), Square(threat, QUERIES))
        elif self.version == "plus":
            made = (
                APGD(threat, STEPS, "ce", restarts=5, widened=False),
                APGD(threat, STEPS, "dlr", restarts=5, widened=False),
                FAB(threat, STEPS, restarts=5),
                Square(threat, QUERIES),
                APGD(threat, STEPS, targets=targets, widened=False),
                FAB(threat, STEPS, targets),
            )
        elif self.version == "rand":
            made = tuple(APGD(threat, STEPS, loss, eot=DRAWS, widened=False) for loss in ("ce", "dlr"))
        else:
            made = self.attacks
        return tuple(attack for attack in made if _possible(attack, classes))

    def cut(self, classes: int) -> bool:
        """Whether so many classes allow less than the version's attacks and targets."""
        return self.version != "custom" and self.members(classes) != self.members(1000)

    def __call__(self, network: Any, images: Tensor, targets: Tensor, key: Key, goal: Goal | None = None) -> Tensor:
        """Adversarial images [B, ...] in [0, 1], inside the threat model, without a graph; wrong ones stay as they are.

        Raises ValueError for a goal: its attacks have their own.
        """
        refuse(self, goal, "raises no goal: its attacks have their own")
        key = key.naming(images)
        (verdict, logits), members = _judged(network, images, targets, key), key.of("member")
        cascade = Cascade(images, verdict.told)
        for number, attack in enumerate(self.members(logits.shape[1])):

            def points(rows: Tensor, attack: Attack = attack, own: int = number) -> Tensor:
                return attack(network, images[rows], targets[rows], members[rows].at(own))

            def judge(found: Tensor, rows: Tensor) -> Verdict:
                return _judged(network, found, targets[rows], key[rows])[0]

            if not cascade.turn(points, judge):
                break
        return cascade.points

    def cost(self) -> float:
        return sum(attack.cost() + 1 for attack in self.members(10)) + 1

    @property
    def label(self) -> str:
        return "autoattack" if self.version == "standard" else f"autoattack-{self.version}"


def _possible(attack: Attack, classes: int) -> bool:
    """Whether the attack's loss exists with so many classes."""
    if not isinstance(attack, APGD):
        return True
    return classes >= (4 if attack.targets else 3 if attack.loss == "dlr" else 2)


def _judged(network: Any, images: Tensor, targets: Tensor, key: Key) -> tuple[Verdict, Tensor]:
    """What points [b, ...] are worth, and their mean logits [b, C]."""
    with measuring(network, key):
        share, logits = judged(network, images, targets, key.of("verdict"), passes(network))
    return Verdict(share, share), logits
