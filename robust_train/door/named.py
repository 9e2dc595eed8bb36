"""Attacks and threat models as people name them: by name, by fields, as values, as functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from fractions import Fraction
from typing import Any, cast, get_args

import numpy
from torch import Tensor

from robust_train.attacks.autoattack import AutoAttack
from robust_train.evaluate.given import Given, takes_three
from robust_train.evaluate.robustness import Kind, Robustness
from robust_train.nouns import Attack, Threat, number
from robust_train.read.errors import ConfigError, nearest
from robust_train.read.parse import parse, tree_of
from robust_train.read.registry import attacks, threats

KINDS: tuple[str, ...] = get_args(Kind)
"""Names of whole evaluations: each a row of attacks, or PGD with starts and a curve."""


def threats_of(said: Any) -> tuple[Threat, ...]:
    """The threat models of `{"linf": 8 / 255, "l2": 0.5}`, of a Threat, of fields with `use`, or of a list of these.

    Raises ConfigError for what is none.
    """
    if isinstance(said, Threat):
        return (said,)
    if isinstance(said, Mapping) and "use" in said:
        return (parse(Threat, dict(said), "threats", "what was asked"),)  # type: ignore[type-abstract]
    if isinstance(said, Mapping):
        return tuple(threats_of({"use": use, "eps": _eps(use, eps)})[0] for use, eps in said.items())
    if isinstance(said, Sequence) and not isinstance(said, str):
        return tuple(threat for one in said for threat in threats_of(one))
    if isinstance(said, str) and said in threats:
        raise ConfigError(
            f"threats={said!r} says no radius: write threats={{{said!r}: {'8/255' if said == 'linf' else 1}}}"
        )
    raise ConfigError(f"threats={said!r}: write {{'linf': 8/255}}, {{'linf': 8/255, 'l2': 0.5}}, or Linf(8/255)")


def attack_of(said: Any, threat: Threat, steps: int | None = None, step_size: float | None = None) -> Attack:
    """An attack in a threat model, of its name, of fields with `use`, or as it is.

    What is not said is as the literature has it (`Attack.usual`); steps and step_size take the place of that. Raises
    ConfigError for an unknown name or field, and for a threat model that the attack does not know.
    """
    if isinstance(said, Attack):
        return said
    tree = {"use": said} if isinstance(said, str) else {name: _plain(value) for name, value in said.items()}
    name = tree.get("use")
    if isinstance(name, str) and name.startswith("autoattack-") and name in KINDS:
        return AutoAttack(threat, name.partition("-")[2])  # type: ignore[arg-type]
    if isinstance(name, str) and name.startswith("apgd-") and name in KINDS:
        own: dict[str, Any] = {"targets": 9} if name == "apgd-t" else {"loss": name.partition("-")[2]}
        tree = {**own, **tree, "use": "apgd"}
    if not isinstance(name, str) or tree["use"] not in attacks:
        known = sorted({*attacks, *KINDS})
        raise ConfigError(
            f"{name!r} is no attack{nearest(str(name), known)} (known: {', '.join(known)}; or any function of a "
            "module, images and labels)"
        )
    kind: Any = attacks[tree["use"]]
    own_fields = {field.name: field for field in fields(kind)}
    bare = {n for n, f in own_fields.items() if f.default is MISSING and f.default_factory is MISSING}
    eps = _eps(threat.use, getattr(threat, "eps", math.nan))
    usual = kind.usual(eps, tree.get("steps", steps))
    usual = {"threat": tree_of(threat), "threats": [tree_of(threat)], "step_sizes": [usual.get("step_size")], **usual}
    if step_size is not None:
        usual |= {"step_size": step_size, "step_sizes": [step_size]}
    asked = {"steps": steps, "step_size": step_size}
    filled = {name: usual[name] for name in bare if name in usual}
    filled |= {name: value for name, value in asked.items() if value is not None and name in own_fields}
    if "threat" in own_fields:
        filled["threat"] = tree_of(threat)
    within = tree.get("attack") if "attack" in own_fields else None
    if within is not None and not isinstance(within, Attack):
        tree["attack"] = attack_of(within, threat, steps, step_size)
    if "attacks" in own_fields and tree.get("attacks"):
        tree["attacks"] = [attack_of(one, threat, steps, step_size) for one in tree["attacks"]]
    return parse(Attack, {**filled, **tree}, "attack", "what was asked")  # type: ignore[type-abstract]


def attacks_of(
    said: Any,
    asked: tuple[Threat, ...],
    steps: int | None = None,
    step_size: float | None = None,
    code: Callable[[Any], str] = lambda call: "",
) -> tuple[tuple[Attack, ...], tuple[Threat, ...]]:
    """(attacks, each in one of the threat models; the threat models), for one attack or a list of them.

    Names, fields and functions are meant in each of the threat models that are `asked` for; an Attack has its own.
    code: the fingerprint of a function. Raises ConfigError.
    """
    every = list(said) if isinstance(said, (list, tuple)) else [said]
    if not every:
        raise ConfigError("attack is an empty list: name one or more")
    made: list[Attack] = []
    for one in every:
        if isinstance(one, Attack):
            made.append(one)
        elif isinstance(one, (str, Mapping)):
            made += [attack_of(one, threat, steps, step_size) for threat in _some(asked, one)]
        elif callable(one) and takes_three(one):
            made += [Given.of(one, threat, code(one)) for threat in _some(asked, one)]
        else:
            raise ConfigError(
                f"attack={one!r} is no attack: give a name, an Attack, or a function of (module, images, labels) that "
                "returns adversarial images"
            )
    if asked:
        return tuple(made), asked
    own = [attack.reach()[0] for attack in made]
    return tuple(made), tuple(threat for place, threat in enumerate(own) if threat not in own[:place])


def evaluation_of(
    said: Any,
    asked: tuple[Threat, ...],
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    code: Callable[[Any], str] = lambda call: "",
    **options: Any,
) -> Robustness:
    """The evaluation by an attack, or by several, as `attacks_of` reads them; options: its other fields.

    pgd means with starts and a curve, autoattack its row of attacks; steps, step_size and restarts that would say
    nothing are refused. Raises ConfigError.
    """
    one = said[0] if isinstance(said, (list, tuple)) and len(said) == 1 else said
    own = {"steps": steps, "step_size": step_size, "restarts": restarts}
    own = {name: value for name, value in own.items() if value is not None}
    try:
        if isinstance(one, str) and one in KINDS and not (one.startswith("apgd-") and own):
            if not asked:
                raise ConfigError(f"attack={one!r} needs a threat model: say threats={{'linf': 8/255}}")
            if own and one != "pgd":
                raise ConfigError(
                    f"{one} has its own {' and '.join(own)}: leave that out, or give an attack by its fields, such as "
                    "{use: apgd, steps: 20}"
                )
            return Robustness(asked, one, **own, **options)  # type: ignore[arg-type]
        if restarts is not None:
            raise ConfigError("restarts is of pgd alone: of others write {use: restarts, attack: NAME, restarts: 5}")
        made, asked = attacks_of(one, asked, steps, step_size, code)
        return Robustness(asked, attacks=made, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _some(asked: tuple[Threat, ...], attack: Any) -> tuple[Threat, ...]:
    if not asked:
        raise ConfigError(f"attack={attack!r} needs a threat model: say threats={{'linf': 8/255}}")
    return asked


def _eps(use: Any, said: Any) -> float:
    """A radius: 0.03, or 8/255 as text."""
    try:
        return number(cast(Any, float(Fraction(said)) if isinstance(said, str) else float(said)))
    except (TypeError, ValueError, ZeroDivisionError):
        raise ConfigError(f"threats: the eps of {use} is {said!r}: write a number, such as 8/255") from None


def _plain(value: Any) -> Any:
    """A tensor or an array as the list that a field reads."""
    return value.tolist() if isinstance(value, (Tensor, numpy.ndarray)) else value
