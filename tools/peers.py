"""Our attacks beside those of other packages: accuracy, verdicts that differ, and seconds, at equal budgets."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from robust_train.read.errors import ConfigError, main_guard
from robust_train.read.paths import Parser
from robust_train.tools.shared import device_of, number

if TYPE_CHECKING:
    from robust_train.nouns import Attack, Batch
    from robust_train.subject import Subject
    from robust_train.threats.ball import Ball
    from robust_train.tools.peer_attacks import Theirs

EPILOG = """examples
  make peers
  python -m tools.peers runs/demo --images 256 --steps 20
  python -m tools.peers runs/demo --rows apgd-ce autoattack --images 100 --chunk 100 --rounds 1
  python -m tools.peers runs/demo --threat l2 --eps 1.0 --rows pgd/torchattacks --threads 1 --json l2.json

Both sides attack the same chunks of the same images on the same device with the same threads, weights frozen, so that
neither computes gradients of weights. A verdict is a fresh float32 forward, and an image counts as robust that is right
when clean and when attacked; a point outside ball or box fools nobody. Times are taken in turn, chunk by chunk, the
first changing sides, and the ratio is ours over theirs, the median of the rounds: below 1 ours is faster.
"""

SLACK = 1e-5, 1e-7  # relative and absolute: how far float32 may leave the ball


@dataclass(frozen=True)
class Pair:
    """One attack as we make it and as a package makes it."""

    name: str  # of the attack: "pgd20"
    package: str  # where the other comes from
    ours: Attack
    theirs: Theirs

    @property
    def row(self) -> str:
        """What `--rows` calls it."""
        return f"{self.name}/{self.package}"


@dataclass(frozen=True)
class Budget:
    """What both sides may spend."""

    threat: Ball
    steps: int  # gradients of a PGD run
    step_size: float  # of PGD, in the threat's unit
    classes: int
    seed: int
    auto_steps: int = 100  # gradients of a run of APGD or FAB
    queries: int = 5000  # of Square

    @property
    def goals(self) -> int:
        """Classes that a targeted attack tries: nine, or all others where there are fewer."""
        return min(9, self.classes - 1)


@dataclass(frozen=True)
class Row:
    """What one pair came to."""

    name: str
    package: str
    images: int
    clean: int  # right when clean
    ours: int  # still right under ours
    theirs: int  # still right under theirs
    only_ours: int  # fooled by ours alone
    only_theirs: int
    distance_ours: float  # the largest
    distance_theirs: float
    outside_ours: int  # points beyond ball or box: they fool nobody
    outside_theirs: int
    seconds_ours: float  # the median round's, all images
    seconds_theirs: float
    ratio: float  # the median of the rounds' ratios, ours / theirs


QUICK = ("fgsm", "pgd")  # the attacks that are compared where none is named: the others take minutes to hours


def pairs(budget: Budget) -> list[Pair]:
    """Every row there is for this threat model, by its budget."""
    from robust_train.attacks.apgd import APGD
    from robust_train.attacks.autoattack import AutoAttack
    from robust_train.attacks.fab import FAB
    from robust_train.attacks.fgsm import FGSM
    from robust_train.attacks.pgd import PGD
    from robust_train.attacks.square import Square
    from robust_train.tools import peer_attacks

    threat, steps, size = budget.threat, budget.steps, budget.step_size
    found = []
    if threat.use == "linf":
        found.append(Pair("fgsm", "torchattacks", FGSM(threat), peer_attacks.torchattacks_fgsm(threat)))
    if threat.use in ("linf", "l2"):
        pgd = PGD(threat, steps, size, start="zero")
        found += [
            Pair("pgd", "torchattacks", pgd, peer_attacks.torchattacks_pgd(threat, steps, size)),
            Pair("pgd", "foolbox", pgd, peer_attacks.foolbox_pgd(threat, steps, size)),
        ]
    sparse, same = threat.use == "l1", (budget.auto_steps, budget.goals, budget.queries, budget.seed)
    singles: dict[peer_attacks.Single, Attack] = {
        "apgd-ce": APGD(threat, budget.auto_steps, restarts=5 if sparse else 1),
        "apgd-dlr": APGD(threat, budget.auto_steps, "dlr", restarts=5 if sparse else 1),
        "apgd-t": APGD(threat, budget.auto_steps, targets=min(5, budget.goals) if sparse else budget.goals),
        "fab": FAB(threat, budget.auto_steps),
        "fab-t": FAB(threat, budget.auto_steps, targets=budget.goals),
        "square": Square(threat, budget.queries),
    }
    for name, attack in singles.items():
        found.append(Pair(name, "pyautoattack", attack, peer_attacks.pyautoattack(threat, name, *same)))
    standard, plus, whole = peer_attacks.STANDARD, peer_attacks.PLUS, peer_attacks.pyautoattack_whole
    ours = AutoAttack(threat, "custom", tuple(singles[name] for name in standard))
    found.append(Pair("autoattack", "pyautoattack", ours, whole(threat, standard, *same)))
    if not sparse:  # the package has no version plus for L1
        often: dict[str, Attack] = {
            "apgd-ce": APGD(threat, budget.auto_steps, restarts=5),
            "apgd-dlr": APGD(threat, budget.auto_steps, "dlr", restarts=5),
            "fab": FAB(threat, budget.auto_steps, restarts=5),
        }
        ours = AutoAttack(threat, "custom", tuple(often.get(name, singles[name]) for name in plus))
        found.append(Pair("autoattack-plus", "pyautoattack", ours, whole(threat, plus, *same, restarts=5)))
    return found


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m tools.peers", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("checkpoint", help="a run's folder (its best checkpoint, else its newest) or a checkpoint")
    rows = "by attack, package or both: pgd, foolbox, autoattack/pyautoattack; all (fgsm and pgd)"
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=rows)
    parser.add_argument("--data", metavar="URL", help="shards of the images (the run's own)")
    parser.add_argument("--images", type=int, default=256, help="the first so many (%(default)s)")
    parser.add_argument("--chunk", type=int, default=128, help="images attacked together (%(default)s)")
    parser.add_argument("--threat", choices=("linf", "l2", "l1"), help="threat model (the run's, else linf)")
    parser.add_argument("--eps", type=number, help="radius, such as 8/255 (the run's)")
    parser.add_argument("--steps", type=int, default=20, help="gradients of PGD (%(default)s)")
    parser.add_argument("--step-size", type=number, help="of PGD, in the unit of eps (2.5 eps / steps)")
    parser.add_argument("--auto-steps", type=int, default=100, help="gradients of a run of APGD, FAB (%(default)s)")
    parser.add_argument("--queries", type=int, default=5000, help="of Square (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, in turn (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what either side draws (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU (torch's own choice)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (the GPU where there is one)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too, after each row")
    return parser.parse_args(words)


@main_guard()
def main(words: Sequence[str]) -> None:
    """Compare, show, and write the figures where asked."""
    import torch

    from robust_train.evaluate.report import circumstances
    from robust_train.nouns import Place
    from robust_train.read.parse import tree_of
    from robust_train.records.judging import telling
    from robust_train.subject import Subject

    asked = arguments(words)
    began = time.monotonic()
    for name in ("images", "chunk", "steps", "auto_steps", "queries", "rounds"):
        if getattr(asked, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(asked, name)} must be at least 1")
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    device = device_of(asked)
    subject = Subject(asked.checkpoint, data=asked.data)
    network, threat = subject.network(device), ball(asked, subject)
    size = 2.5 * threat.eps / asked.steps if asked.step_size is None else asked.step_size  # type: ignore[operator]
    budget = Budget(threat, asked.steps, size, network.classes, asked.seed, asked.auto_steps, asked.queries)
    chosen = choose(pairs(budget), asked.rows)
    packages = {pair.package: version(pair.package) for pair in chosen if installed(pair)}
    chunks = subject.images().validation_batches(Place(), asked.chunk, asked.images)
    batches = [batch.to(device) for batch in chunks if len(batch)]
    rows: list[Row] = []
    with telling() as tell:
        for at, pair in enumerate(chosen):

            def seen(share: float, row: str = pair.row, before: int = at) -> None:
                tell(row, (before + share) / len(chosen), f"row {before + 1} of {len(chosen)}")

            rows.append(compare(network, batches, threat, pair, asked.rounds, asked.seed, seen))
            if asked.json:
                tree = {
                    "checkpoint": asked.checkpoint,
                    "threat": tree_of(threat),
                    "steps": asked.steps,
                    "auto_steps": asked.auto_steps,
                    "queries": asked.queries,
                    "step_size": size,
                    "chunk": asked.chunk,
                    "rounds": asked.rounds,
                    "seed": asked.seed,
                    "rows": [asdict(row) for row in rows],
                    "packages": packages,
                    **circumstances(device, began),
                }
                Path(asked.json).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    shown = f"{asked.checkpoint}: {threat.use} eps {threat.eps:.4g}, {torch.get_num_threads()} threads, {device}"
    show(shown, rows)


def ball(asked: argparse.Namespace, subject: Subject) -> Ball:
    """The threat model that is asked for, else the run's. ConfigError where it has no radius."""
    from robust_train.read.parse import parse, tree_of
    from robust_train.threats.ball import Ball

    own = {"use": "linf"} if subject.threat is None else tree_of(subject.threat)
    tree: dict[str, Any] = own if asked.threat in (None, own["use"]) else {"use": asked.threat}
    tree = tree if asked.eps is None else tree | {"eps": asked.eps}
    if "eps" not in tree:
        raise ConfigError(f"the run says no eps for {tree['use']}: give one, such as --eps 8/255")
    return parse(Ball, tree, "threat", "the command line")  # type: ignore[type-abstract]


def choose(every: Sequence[Pair], names: Sequence[str] | None) -> list[Pair]:
    """The pairs that are named, by attack, package or both; the quick ones where none is. ConfigError for no such."""
    if names is None:
        names = [pair.row for pair in every if pair.name in QUICK] or [pair.row for pair in every]
    known = {"all"} | {name for pair in every for name in (pair.row, pair.name, pair.package)}
    for name in names:
        if name not in known:
            raise ConfigError(f"--rows {name}: there is no such row here (there are {', '.join(p.row for p in every)})")
    return [p for p in every if {"all", p.row, p.name, p.package} & set(names)]


def installed(pair: Pair) -> bool:
    """True, or ConfigError where the other package is not there."""
    from robust_train.tools.peer_attacks import peer

    return peer(pair.package) is not None


def compare(
    network: Any,
    batches: Sequence[Batch],
    threat: Ball,
    pair: Pair,
    rounds: int,
    seed: int,
    seen: Callable[[float], None] = lambda share: None,
) -> Row:
    """Attack all images by both sides, batch by batch in turn; the verdicts are those of the first round.

    seen: told after each batch which share of the row is done.
    """
    import torch

    from robust_train.attacks.attacked import attacked
    from robust_train.evaluate.accuracy import judged
    from robust_train.keyed import Key

    def ours(batch: Batch) -> Any:
        return pair.ours(network, batch.images, batch.targets, Key(seed).of("figure").rows(batch.sample))

    def theirs(batch: Batch) -> Any:
        return pair.theirs(network, batch.images, batch.targets)

    sides = {"ours": ours, "theirs": theirs}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, list[Any]] = {side: [] for side in sides}
    # `attacked` freezes the weights for the packages too: some of them call backward()
    with judged(network), attacked(network):
        for attack in sides.values():  # imports, allocations and the choice of algorithms are no part of a round
            attack(batches[0][:2])
        for turn in range(rounds):
            spent = dict.fromkeys(sides, 0.0)
            for at, batch in enumerate(batches):
                for side in sorted(sides, reverse=(turn + at) % 2 == 1):
                    began = time.perf_counter()
                    adversarial = sides[side](batch)
                    if batch.images.device.type == "cuda":
                        torch.cuda.synchronize(batch.images.device)
                    spent[side] += time.perf_counter() - began
                    if turn == 0:
                        found[side].append(adversarial)
                seen((turn + (at + 1) / len(batches)) / rounds)
            for side in sides:
                seconds[side].append(spent[side])
        clean = robust(network, batches, threat, [batch.images for batch in batches])[0]
        held, far, outside = {}, {}, {}
        for side, adversarial in found.items():
            right, distance, inside = robust(network, batches, threat, adversarial)
            held[side], far[side] = clean & (right | ~inside), float(distance.max())
            outside[side] = int((~inside).sum())
    ratio = median(a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True))
    return Row(
        name=pair.name,
        package=pair.package,
        images=len(clean),
        clean=int(clean.sum()),
        ours=int(held["ours"].sum()),
        theirs=int(held["theirs"].sum()),
        only_ours=int((held["theirs"] & ~held["ours"]).sum()),
        only_theirs=int((held["ours"] & ~held["theirs"]).sum()),
        distance_ours=far["ours"],
        distance_theirs=far["theirs"],
        outside_ours=outside["ours"],
        outside_theirs=outside["theirs"],
        seconds_ours=median(seconds["ours"]),
        seconds_theirs=median(seconds["theirs"]),
        ratio=ratio,
    )


def robust(network: Any, batches: Sequence[Batch], threat: Ball, adversarial: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Of each image [N]: whether it is right by a fresh forward, how far it was moved, whether that is allowed."""
    import torch

    from robust_train.losses import correct
    from robust_train.nouns import number as plain

    relative, absolute = SLACK
    right, distance, inside = [], [], []
    with torch.no_grad():
        for batch, points in zip(batches, adversarial, strict=True):
            moved = threat.distance(batch.images, points)
            boxed = (points.flatten(1).amin(1) >= 0) & (points.flatten(1).amax(1) <= 1)
            right.append(correct(network(points), batch.targets).bool())
            distance.append(moved)
            inside.append(boxed & (moved <= plain(threat.eps) * (1 + relative) + absolute))
    return torch.cat(right), torch.cat(distance), torch.cat(inside)


def show(title: str, rows: Sequence[Row]) -> None:
    """One table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    console.print(f"{title}\n{rows[0].images} images, {rows[0].clean} right when clean", highlight=False)
    table = Table(caption="ours / theirs; robust accuracy; images that one side alone fools")
    for column in ("", "robust", "alone", "seconds", "ratio"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        ours, theirs = (100 * right / row.images for right in (row.ours, row.theirs))
        table.add_row(
            f"{row.name}/{row.package}",
            f"{ours:.1f} / {theirs:.1f} %",
            f"{row.only_ours} / {row.only_theirs}",
            f"{row.seconds_ours:.2f} / {row.seconds_theirs:.2f}",
            f"{row.ratio:.2f}",
        )
    console.print(table)
    for row in rows:
        if row.outside_ours or row.outside_theirs:
            console.print(
                f"{row.name}: points outside ball or box, counted as not fooled: ours {row.outside_ours}, "
                f"{row.package} {row.outside_theirs}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
