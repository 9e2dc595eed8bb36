"""Every random mask of a timm model, made a function of the network's key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from robust_train.keyed.drops import KeyedDrop, KeyedDropout, KeyedDropPath, KeyedPatchDropout, KeyedTableDropout
from robust_train.keyed.mode import Held
from robust_train.read.errors import ConfigError

CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
LAST = ("DenseLayer", "DenseBlock")  # timm's DenseNet and RDNet: F.dropout is the last thing their forward does
TABLES = frozenset({"rel_pos", "rel_pos_mlp", "meta_mlp"})  # timm's maps from relative positions: they see no image
RANDOM = frozenset(
    """dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout drop_path drop_block_2d
    patch_dropout_forward stochastic_depth rrelu rrelu_ fractional_max_pool2d fractional_max_pool3d gumbel_softmax rand
    randn rand_like randn_like randint randperm bernoulli bernoulli_ multinomial uniform_ normal_""".split()  # noqa: SIM905
)
"""Functions that draw from the global generator, by the names under which a forward calls them."""
PATHS = frozenset({"drop_path", "stochastic_depth", "rand", "bernoulli", "bernoulli_"})
"""Those that may drop whole branches."""


def replace_drops(model: nn.Module, held: Held) -> list[str]:
    """Give each drop module of `model` its keyed form, in place. Returns the names of all, in order; stream = index.

    nn.Dropout*, timm's DropPath and PatchDropout become keyed modules (no parameters: a state dict keeps its names).
    Functional dropout on `drop_rate` becomes a keyed module that runs before the classifier or after the block.
    Attention with dropout leaves the fused kernel, which draws masks of its own.
    """
    keyed: dict[nn.Module, KeyedDrop] = {}  # a module that stands in two places stays one module
    names: list[str] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        made = keyed.get(module) or _keyed(module, len(names), held)
        if isinstance(made, KeyedDropout) and TABLES & set(name.split(".")) and not made.channels:
            made = KeyedTableDropout(made.rate, made.stream, held)
        if made is None:
            continue
        if module not in keyed:
            keyed[module] = made.train(module.training)
            names.append(name)
        model.set_submodule(name, made)
    for name, module in list(model.named_modules()):
        if _rates(module).get("drop_rate") and "dropout" in _random_calls(module):
            hooked = _hook(module, KeyedDropout(float(module.drop_rate), len(names), held).train(module.training))
            if hooked:
                names.append(f"{name}.keyed_drop".lstrip("."))
        if getattr(module, "fused_attn", False) and _attention_rate(module) > 0:
            module.fused_attn = False
    return names


def refuse_unkeyed(model: nn.Module) -> None:
    """Raise ConfigError if a module of `model` still draws from the global generator, or recomputes without its key.

    What a forward calls is read from its code, through the methods of its class; rates that are 0 make it harmless.
    """
    for name, module in model.named_modules():
        if isinstance(module, KeyedDrop):
            continue
        kind, rates = type(module).__name__, _rates(module)
        where = f"layer {name!r}" if name else "the model"
        calls = _random_calls(module)
        if not calls & PATHS:  # what it drops is no path: a path rate is for its children
            rates = {rate: value for rate, value in rates.items() if "path" not in rate}
        if getattr(module, "aug_active", False):  # timm's rotary embeddings: a free function jitters coordinates
            calls, rates = calls | {"uniform_"}, {}
        active = {rate: value for rate, value in rates.items() if value}
        # built into torch, their masks are drawn where no name shows it
        hidden = isinstance(module, (nn.MultiheadAttention, nn.RNNBase)) or (
            "scaled_dot_product_attention" in _called(module) and not hasattr(module, "fused_attn")
        )
        if (active and ("drop" in kind.lower() or hidden)) or (calls and (active or not rates)):
            said = ", ".join(f"{rate}={value}" for rate, value in active.items()) or f"calls {', '.join(sorted(calls))}"
            raise ConfigError(
                f"{where} ({kind}, {said}) draws random numbers that no key decides. "
                "Set its rate to 0, or give it a keyed form (robust_train/keyed/drops.py)."
            )
        if getattr(module, "grad_checkpointing", False):
            raise ConfigError(
                f"{where} ({kind}) recomputes its blocks by timm's grad_checkpointing, which forgets the drop masks' "
                "key. Leave it off and use checkpoint_blocks(model, held)."
            )


def _keyed(module: Any, stream: int, held: Held) -> KeyedDrop | None:
    """The keyed form of a drop module; None for any other."""
    from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices

    kind: Any = type(module)  # exactly: what a subclass draws is not known
    if kind in (nn.Dropout, *CHANNELS):
        return KeyedDropout(module.p, stream, held, channels=kind in CHANNELS)
    if kind is DropPath:
        return KeyedDropPath(float(module.drop_prob or 0), stream, held, scale=module.scale_by_keep)
    if kind in (PatchDropout, PatchDropoutWithIndices):
        indices = kind is PatchDropoutWithIndices
        return KeyedPatchDropout(module.prob, stream, held, module.num_prefix_tokens, module.ordered, indices)
    return None


def _hook(module: Any, drop: KeyedDropout) -> bool:
    """Let `drop` do what `module` did by F.dropout; false where it is not known at which point it did."""
    if not type(module).__module__.startswith("timm."):
        return False
    if type(module).__name__ in LAST:
        module.register_forward_hook(_After(drop))
    elif hasattr(module, "get_classifier") and isinstance(module.get_classifier(), nn.Module):
        module.get_classifier().register_forward_pre_hook(_Before(drop))
    else:
        return False
    module.keyed_drop = drop  # a child, so that train() and eval() reach it
    module.drop_rate = 0.0
    return True


class _Before:
    """A hook that drops a module's input.

    An object, not a closure: the hooks of a copied network then read the copy's mode.
    """

    def __init__(self, drop: KeyedDropout) -> None:
        self.drop = drop

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.drop(inputs[0]), *inputs[1:])


class _After(_Before):
    """A hook that drops a module's output."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # type: ignore[override]
        return self.drop(output)


def _attention_rate(module: Any) -> float:
    drop = getattr(module, "attn_drop", None)
    return drop.rate if isinstance(drop, KeyedDrop) else 0.0


def _rates(module: nn.Module) -> dict[str, Any]:
    """The module's own numbers that say how much it drops, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and ("drop" in name or name in ("p", "prob"))
    }


def _random_calls(module: nn.Module) -> set[str]:
    """Names in RANDOM that the module's forward calls; those that are its own attributes are modules, judged alone."""
    return {name for name in _called(module) & RANDOM if not hasattr(module, name)}


def _called(module: nn.Module) -> set[str]:
    """Every name that the module's forward uses, through the methods of its class that it reaches."""
    names: set[str] = set()
    methods = [getattr(type(module), "forward", None)]
    seen: set[Callable] = set()
    while methods:
        method = methods.pop()
        if not isinstance(method, FunctionType) or method in seen:
            continue
        seen.add(method)
        used = set(_names(method.__code__))
        names |= used
        methods += [getattr(type(module), name, None) for name in used if not hasattr(nn.Module, name)]
    return names


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):  # a comprehension or a lambda
            yield from _names(constant)
