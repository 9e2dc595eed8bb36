"""Signs that an evaluation was fooled, read from its verdicts.

After Athalye et al. 2018 (arXiv 1802.00420, section 3.1), Carlini et al. 2019 (arXiv 1902.06705, section 4), Croce and
Hein 2020 (arXiv 2003.01690, section 6). On n images a difference counts from 0.5 % of them on, and from more than two
images: so much is one start's luck. A plan may ask for less (`Plan.sees`), on images enough; what such a sign sees, it
says. Where verdicts are means over D passes of a network with randomness of its own, the smaller of two such means lies
below the first by sqrt(p (1 - p) / (pi D)) on average, though nothing was found; twice that is allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from robust_train.attacks.square import Square
from robust_train.evaluate.report import Flag
from robust_train.evaluate.trial import CLEAN, Trial
from robust_train.evaluate.verdicts import Plan, Verdicts
from robust_train.nouns import number

MORE = 0.005  # share of the images that another attack may find in addition
SQUARE = 0.002  # the same of Square at the end of AutoAttack: its authors' limit
RISE = 0.01  # rise of accuracy with eps, as a share of all images, that one start's luck does not explain
LUCK = 2  # images
BEND = 0.05  # rise of the median margin with eps, as a share of its whole fall


def signs(verdicts: Verdicts, plan: Plan) -> tuple[Flag, ...]:
    """Every flag that verdicts can raise. Costs nothing."""
    of_threat: tuple[Callable[[Verdicts, Plan, str], Flag], ...] = (
        square_helps,
        more_steps_help,
        more_starts_help,
        noise_helps,
        one_step_is_better,
        above_clean,
        curve_rises,
        margin_rises,
        numbers,
    )
    return (
        *(look(verdicts, plan, tag) for tag in tags(plan) for look in of_threat),
        box_holds(verdicts, plan),
        answers(verdicts),
        *points_refused(verdicts, plan),
    )


def tags(plan: Plan) -> list[str]:
    """The threat models of a plan."""
    return list(dict.fromkeys(trial.threat for trial in plan.trials if trial.threat))


def square_helps(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Square, which reads no gradient, fools images that the gradient attacks before it did not.

    In AutoAttack: more than 0.2 % of all images, as its code has it, but against the attacks before Square alone: with
    those after it (version plus) the code's comparison can never fire. Else a check: a short Square after the figure.
    """
    name = f"{tag}: square beats gradients"
    row = [trial for trial in plan.of("attack", tag) if isinstance(trial.attack, Square)]
    cure = "gradients are masked: attack what hides them (BPDA, EOT), give square more queries"
    if row and len(row[0].after) > 1:
        before, after = _around(verdicts, row[0])
        share = _mean(before) - _mean(after)
        limit = _asked(plan, SQUARE)
        return _flag(
            name, f"square fools {share:.2%} more of all images than the attacks before it", cure, share, limit
        )
    return _more(verdicts, plan, tag, "square", name, "square", cure)


def more_steps_help(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """PGD with ten times the steps fools images that the figure's attack did not."""
    cure = "the attack has not converged: give it more steps"
    return _more(verdicts, plan, tag, "more-steps", f"{tag}: more steps help", "ten times the steps", cure)


def more_starts_help(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """PGD from more starts fools images that the figure's attack did not."""
    cure = "where it starts decides: give it more restarts"
    return _more(verdicts, plan, tag, "more-starts", f"{tag}: more restarts help", "five more starts", cure)


def noise_helps(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Random points of the ball fool images that gradients did not."""
    cure = "gradients point away from what is there: look at square"
    return _more(verdicts, plan, tag, "noise", f"{tag}: noise beats gradients", "random noise", cure)


def one_step_is_better(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Accuracy under one step of size eps is below that under the many steps of the figure's first attack."""
    name = f"{tag}: accuracy rises with steps"
    trial, first = _check(verdicts, plan, tag, "one-step"), plan.of("attack", tag)[0]
    if trial is None:
        return _unseen(name)
    one = verdicts.columns[trial.name].right
    many = verdicts.columns[first.name].right[: len(one)]
    rise = _mean(many) - _mean(one)
    says = f"accuracy is {abs(rise):.1%} {'higher' if rise > 0 else 'lower'} under many steps than under one"
    limit = _limit(plan, many, MORE)
    says += _seen_from(limit, many)
    return _flag(name, says, "the steps lead away from what one finds", rise, limit)


def above_clean(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Accuracy under noise, or under a short attack by itself, above that on the same images clean.

    Here all images are attacked; in figures only right ones are, so that they cannot show it.
    """
    name = f"{tag}: robust above clean"
    trials = [trial for kind in ("noise-on-all", "attack-on-all") if (trial := _check(verdicts, plan, tag, kind))]
    if not trials:
        return _unseen(name)
    shares = [verdicts.columns[trial.name].right for trial in trials]
    clean = verdicts.columns[CLEAN].right[: len(shares[0])]
    above = max(_mean(share) for share in shares) - _mean(clean)
    says = (
        f"noise or an attack on all images leaves accuracy {abs(above):.1%} {'above' if above > 0 else 'below'} clean"
    )
    return _flag(name, says, "the attack helps the network: its gradients are wrong", above, _limit(plan, clean, MORE))


def curve_rises(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Accuracy that rises with eps: the larger ball holds the smaller, so the attack misses what is there."""
    name, trials = f"{tag}: accuracy rises with eps", plan.of("curve", tag)
    if not trials:
        return Flag(name, None, "no curve was made: say --curve 4")
    shares = [verdicts.columns[trial].right for trial in (CLEAN, *(trial.name for trial in trials))]
    rise = max(_mean(far) - _mean(near) for near, far in pairwise(shares))
    limit = _limit(plan, shares[0], RISE)
    return _flag(
        name, f"the largest rise between two radii is {rise:.1%}", "the attack misses what is there", rise, limit
    )


def margin_rises(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """The median margin of the attacked images rises with eps, by more than 5 % of its whole fall."""
    name, trials = f"{tag}: margin rises with eps", plan.of("curve", tag)
    if not trials:
        return Flag(name, None, "no curve was made: say --curve 4")
    attacked = ~verdicts.columns[trials[0].name].margin.isnan()
    margins = [verdicts.columns[trial].margin[attacked] for trial in (CLEAN, *(trial.name for trial in trials))]
    medians = [float(margin.median()) for margin in margins] if bool(attacked.any()) else [0.0, 0.0]
    fall = max(medians[0] - min(medians), 0.01 * abs(medians[0]), 1e-30)
    rise = max(max(0.0, far - near) for near, far in pairwise(medians)) / fall
    says = (
        f"the median margin falls by {fall:.3g} from clean to the worst radius; its largest rise is {rise:.0%} of that"
    )
    return _flag(name, says, "the attack loses its way in larger balls", rise, BEND)


def box_holds(verdicts: Verdicts, plan: Plan) -> Flag:
    """Images that stand though every pixel may become anything: no network can hold that."""
    name = "unbounded attack fails"
    trial = _check(verdicts, plan, "", "unbounded")
    if trial is None:
        return _unseen(name)
    right = verdicts.columns[trial.name].right
    limit = _limit(plan, right, RISE)
    says = f"accuracy is {_mean(right):.1%} where every pixel may become anything{_seen_from(limit, right)}"
    cure = "it must be 0: gradients vanish on the way, so smaller radii prove nothing either"
    return _flag(name, says, cure, _mean(right), limit)


def points_refused(verdicts: Verdicts, plan: Plan) -> tuple[Flag, ...]:
    """Points of a function that are none: not finite, not in [0, 1], or outside the threat model. One is enough."""
    found = []
    for trial in plan.trials:
        column = verdicts.columns.get(trial.name)
        if column is None or column.refused is None or trial.attack is None:
            continue
        lost, far = column.refused, column.distance[column.refused]
        eps = number(trial.attack.reach()[0].eps)  # type: ignore[attr-defined]
        unreal, outside = int(far.isnan().sum()), far[far > eps * (1 + 1e-5) + 1e-7]
        parts = [f"{unreal:,} not finite"] if unreal else []
        if len(outside):
            parts.append(
                f"{len(outside):,} outside {trial.threat} of eps {eps:.4g}, the farthest at {outside.max():.4g}"
            )
        if other := len(far) - unreal - len(outside):
            parts.append(f"{other:,} with pixels outside [0, 1]")
        says = f"{int(lost.sum()):,} of {int((~column.margin.isnan()).sum()):,} points count for nothing"
        says += f" ({', '.join(parts)})" if parts else ""
        cure = "the accuracy is too high by what they might have fooled: bring them into ball and box"
        found.append(_flag(f"{trial.name}: points refused", says, cure, float(lost.sum()), 0.0))
    return tuple(found)


def classes_in_order(verdicts: Verdicts, plan: Plan) -> Flag:
    """The first images alone, of a set that lies class by class: they hold few classes, and the figure is of these.

    n images drawn from K classes hold K (1 - (1 - 1 / K)^n) of them on average; less than half of that counts.
    """
    seen, count = len(verdicts.labels.unique()), len(verdicts.labels)
    usual = plan.classes * (1 - (1 - 1 / max(1, plan.classes)) ** count)
    says = f"the first {count:,} images hold {seen:,} of {plan.classes:,} classes, drawn ones {usual:.0f} or so"
    cure = "the set lies class by class: judge all of it, or shard it shuffled"
    up = seen < usual / 2
    return Flag("classes left out", up, f"{says}: {cure}" if up else says, float(seen), usual / 2)


def numbers(verdicts: Verdicts, plan: Plan, tag: str) -> Flag:
    """Gradients and points of the attacks that were not finite: they fooled nobody, and vouch for nothing."""
    made = [
        verdicts.columns[trial.name] for trial in plan.trials if trial.threat == tag and trial.name in verdicts.columns
    ]
    rows = [column.lost for column in made if column.lost is not None]
    lost = _mean(torch.cat(rows)) if rows else 0.0
    broken = sum(int(column.broken.sum()) for column in made if column.broken is not None)
    says = f"{lost:.2%} of the attacks' gradients and {broken:,} of their points were not finite"
    cure = "they went on by the others, weaker than they could be: give the network a finite slope, look at square"
    return _flag(f"{tag}: attacks met what is not finite", says, cure, lost + broken, 0.0)


def answers(verdicts: Verdicts) -> Flag:
    """Images at which, clean or attacked, a network gave logits that are not finite: that counts as wrong."""
    astray = torch.zeros(len(verdicts.sample), dtype=torch.bool)
    for column in verdicts.columns.values():
        astray[: len(column.margin)] |= column.margin == -torch.inf
    share = _mean(astray.double())
    says = f"logits are not finite on {share:.2%} of the images"
    return _flag(
        "answers not finite", says, "they count as wrong, though nothing was fooled: mend the network", share, 0.0
    )


def _more(verdicts: Verdicts, plan: Plan, tag: str, kind: str, name: str, what: str, cure: str) -> Flag:
    """A check after the figure's attacks that fools more images than luck does."""
    trial = _check(verdicts, plan, tag, kind)
    if trial is None:
        return _unseen(name)
    before, after = _around(verdicts, trial)
    share = _mean(before) - _mean(after)
    limit = _limit(plan, before, MORE)
    says = f"{what} fools {share:.2%} more of {len(after):,} images{_seen_from(limit, after)}"
    return _flag(name, says, cure, share, limit)


def _check(verdicts: Verdicts, plan: Plan, tag: str, kind: str) -> Trial | None:
    """A check that was made."""
    found = [trial for trial in plan.of("check", tag) if trial.name.endswith(f"/{kind}")]
    return found[0] if found and found[0].name in verdicts.columns else None


def _around(verdicts: Verdicts, trial: Trial) -> tuple[Tensor, Tensor]:
    """[n] of the images that a trial was made on the shares before it and after it."""
    right = verdicts.columns[trial.name].right
    return torch.stack([verdicts.columns[name].right[: len(right)] for name in trial.after]).amin(0), right


def _mean(shares: Tensor) -> float:
    return float(shares.double().mean()) if len(shares) else 0.0


def _limit(plan: Plan, right: Tensor, share: float) -> float:
    """What may be luck beside the shares [n], as a share of as many images."""
    passes = (right.double() * (1 - right.double()) / (math.pi * plan.draws)).sqrt()
    return max(_asked(plan, share), LUCK / max(1, len(right))) + 2 * _mean(passes)


def _asked(plan: Plan, share: float) -> float:
    """The share from which on a sign counts, or a smaller one that the plan asks to see: just less than that."""
    return share if plan.sees is None else min(share, (1 - 1e-3) * plan.sees)


def _seen_from(limit: float, right: Tensor) -> str:
    """The least share of so many images that is above a limit, in words."""
    count = max(1, len(right))
    return f" (seen from {(math.floor(limit * count + 1e-6) + 1) / count:.2%} on)"


def images_for(share: float) -> int:
    """Images among which so small a share is more than luck."""
    return math.ceil((LUCK + 1) / share - 1e-9)


def _flag(name: str, says: str, cure: str, value: float, limit: float) -> Flag:
    """Up where the value is above the limit by more than rounding; then the remedy is said."""
    raised = value > limit + 1e-9
    return Flag(name, raised, f"{says}: {cure}" if raised else says, value, limit)


def _unseen(name: str) -> Flag:
    return Flag(name, None, "the attack that looks for it was not made: say --checks 100")
