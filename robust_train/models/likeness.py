"""Which of timm's models some weights are of, by names and shapes."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

SECONDS = 8.0  # a refusal may take so long to say more
# a small model of each file of timm's that most checkpoints are of: whose names they are says which file to look in
FAMILIES = """resnet18 vit_tiny_patch16_224 convnext_atto swin_tiny_patch4_window7_224 efficientnet_b0 regnetx_002
    xcit_nano_12_p16_224 densenet121 vgg11 mobilenetv3_small_050 resnetv2_50 beit_base_patch16_224 cait_xxs24_224
    mixer_s32_224 pit_ti_224 coat_tiny poolformer_s12 inception_v3 maxvit_tiny_tf_224 repvgg_a0 dla34 nfnet_l0
    """.split()  # noqa: SIM905


def timm_like(weights: Mapping[str, Tensor]) -> str | None:
    """The timm model that has these names and shapes, but for its head; None where none was found.

    Models are built without memory (on PyTorch's meta device): the small ones above, then all of the file whose small
    one shares most names. Some seconds, and no more.
    """
    from timm.models import _registry

    until = time.monotonic() + SECONDS
    shared = {small: len(weights.keys() & _shapes(small).keys()) for small in FAMILIES}
    best = max(shared, key=shared.__getitem__)
    if shared[best] < len(weights) / 4:
        return None
    family = _registry._model_to_module[best]
    members = sorted((n for n in _registry._module_to_models[family] if n in _registry._model_to_module), key=len)
    for name in members:
        if time.monotonic() > until:
            return None
        if _same(weights, _shapes(name)):
            return name
    return None


def _same(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> bool:
    """Whether names agree, and shapes but for a head: at most two tensors, whose first size alone differs."""
    if weights.keys() != shapes.keys():
        return False
    other = [name for name, shape in shapes.items() if weights[name].shape != shape]
    return len(other) <= 2 and all(weights[name].shape[1:] == shapes[name][1:] for name in other)


def _shapes(name: str) -> dict[str, torch.Size]:
    """Of a model's tensors; none where it cannot be built so: some compute with their tensors as they are made."""
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except Exception:
        return {}
    return {key: value.shape for key, value in model.state_dict().items()}
