"""One small instance, or several, of every registered objective: what contract and law tests run over."""

from __future__ import annotations

from robust_train.attacks.pgd import PGD
from robust_train.nouns import Objective
from robust_train.objectives.distill import Distill
from robust_train.objectives.generalized import Generalized
from robust_train.objectives.interpolated import Interpolated
from robust_train.objectives.madry import Madry
from robust_train.objectives.plain import Plain
from robust_train.objectives.pyramid import PyramidTraining
from robust_train.objectives.trades import Trades
from robust_train.threats.l2 import L2
from robust_train.threats.linf import Linf
from robust_train.threats.pyramid import Pyramid
from robust_train.threats.weights import Weights
from tests.teachers import teacher
from tests.toys import SCRATCH

GROUP = 4  # consecutive images that mix, or share a direction of their weights


def examples(steps: int) -> dict[str, Objective]:
    """{name: objective} for images of 8x8 pixels, with attacks of so many steps."""
    linf = PGD(Linf(0.1), steps, 0.05)
    l2 = PGD(L2(0.5), steps, 0.2)
    teachers = (teacher(SCRATCH, 0), teacher(SCRATCH, 1, noisy=True))
    exact = {"teacher_precision": "fp32"}
    return {
        "plain": Plain(smoothing=0.1),
        "madry": Madry(linf),
        "madry, group norm, frozen masks": Madry(PGD(Linf(0.1), steps, 0.05, norm="group", drops="frozen")),
        "madry, best iterate, redrawn masks": Madry(PGD(Linf(0.1), steps, 0.05, keep="best", drops="redrawn", eot=2)),
        "trades": Trades(PGD(Linf(0.1), steps, 0.05, start="noise"), beta=6.0),
        "pyramid": PyramidTraining(pyramid_attack(steps), loss="sigmoid"),
        "interpolated": Interpolated(linf, group=GROUP),
        "interpolated, manifold": Interpolated(linf, group=GROUP, layers="stages"),
        "generalized, average": Generalized((linf, l2), "average", Weights(0.01, GROUP)),
        "generalized, maximum": Generalized((linf, l2), "maximum"),
        "generalized, msd": Generalized((msd(Linf(0.1), steps, 0.05), msd(L2(0.5), steps, 0.2)), "msd"),
        "generalized, sample": Generalized((linf, l2), "sample"),
        "distill": Distill(teachers, draws=2, **exact),
        "distill, ard": Distill(teachers, attack=linf, alpha=0.7, mean="probabilities", **exact),
        "distill, rslad": Distill(teachers[1:], 1.0, 1.0, attack=linf, beta=5 / 6, raises="teacher", **exact),
        "distill, of attacked images": Distill(teachers[:1], attack=linf, teacher_sees="attacked", **exact),
        "generalized, sample with weights": Generalized((linf,), "sample", Weights(0.01, GROUP)),
    }


def msd(threat, steps: int, size: float) -> PGD:
    return PGD(threat, steps, size, start="zero", keep="best")


def pyramid_attack(steps: int) -> PGD:
    threat = Pyramid(levels=(4, 2, 1), multipliers=(4.0, 2.0, 1.0), eps=0.02)
    return PGD(threat, steps, 0.01, start="zero", targets="random", norm="group", drops="frozen")
