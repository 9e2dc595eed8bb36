"""timm's random masks, made functions of key and row: the same key, the same bits, in every family used."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust_train.keyed import Key
from robust_train.keyed.drops import KeyedDrop, KeyedDropout, KeyedDropPath, KeyedPatchDropout
from robust_train.keyed.mode import Held
from robust_train.models.checkpointing import checkpoint_blocks
from robust_train.models.drops import refuse_unkeyed, replace_drops
from robust_train.read.errors import ConfigError

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24}
DROPS = {"drop_rate": 0.2, "drop_path_rate": 0.3}
VIT = {"depth": 2, "num_heads": 3, **SMALL}
FAMILIES: dict[str, tuple[str, dict]] = {
    "vit": ("vit_tiny_patch16_224", VIT | {"attn_drop_rate": 0.2, "proj_drop_rate": 0.1, "patch_drop_rate": 0.25}),
    "relpos": ("vit_relpos_small_patch16_224", VIT),  # a table of relative positions with dropout of its own
    "deit3": ("deit3_small_patch16_224", VIT),
    "xcit": (
        "xcit_nano_12_p16_224",
        {"depth": 2, "cls_attn_layers": 1, "attn_drop_rate": 0.2} | SMALL | {"embed_dim": 32},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}),
    "resnet": ("resnet18", {"layers": (1, 1, 1, 1)}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "window_size": 4,
            "depths": (2, 1),
            "num_heads": (2, 2),
            "embed_dim": 16,
            "attn_drop_rate": 0.2,
        },
    ),
    "mixer": ("mixer_s16_224", {"img_size": 32, "proj_drop_rate": 0.1}),
    "tnt": (
        "tnt_s_legacy_patch16_224",
        {"img_size": 32, "depth": 1, "embed_dim": 48, "inner_dim": 12, "num_heads_outer": 4},
    ),
    "cait": ("cait_xxs24_224", {"img_size": 32, "depth": 1, "depth_token_only": 1, "embed_dim": 24, "num_heads": 3}),
    "efficientnet": ("efficientnet_lite0", {}),
    "mobilenet": ("mobilenetv3_small_050", {}),
    "densenet": ("densenet121", {"block_config": (1, 1, 1, 1), "drop_path_rate": None}),
    "rdnet": ("rdnet_tiny", {}),
}
families = pytest.mark.parametrize("family", FAMILIES)
PIXELS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
KEY = Key(1).at(0).of("drops").rows(torch.arange(4))


def drawing(held: Held, key: Key | None) -> AbstractContextManager[None]:
    """Masks by a key; None: nothing is dropped."""
    return held.entered({"masks": "off" if key is None else key})


def timm_model(name: str, **fields) -> nn.Module:
    import timm

    return timm.create_model(name, **fields)


def model_of(family: str, **changed) -> tuple[nn.Module, Held, list[str]]:
    """A small model in train mode with keyed masks; BatchNorm on running statistics, so that rows are alone."""
    torch.manual_seed(0)
    name, fields = FAMILIES[family]
    model = timm_model(name, num_classes=5, **{**DROPS, **fields, **changed})
    held = Held()
    names = replace_drops(model, held)
    refuse_unkeyed(model)
    for parameter in model.parameters():  # layer scales of 1e-6 would hide what a block drops
        if parameter.abs().max() < 1e-2:
            nn.init.normal_(parameter, std=0.2)
    model.train().double()  # two ways of one computation are alike to the last digits, on any processor
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model, held, names


def logits_of(model: nn.Module, held: Held, key: Key | None, images: Tensor = PIXELS) -> Tensor:
    with torch.no_grad(), drawing(held, key):
        return model(images)


@families
def test_the_same_key_gives_the_same_bits_and_another_key_other_bits(family):
    model, held, names = model_of(family)
    keyed = [module for module in model.modules() if isinstance(module, KeyedDrop)]
    assert len({module.stream for module in keyed}) == len(keyed) == len(names)
    first = logits_of(model, held, KEY)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(logits_of(model, held, KEY), first)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn from the global generator
    assert not torch.equal(logits_of(model, held, KEY.at(1)), first)


@families
def test_rows_alone_decide_the_masks(family):
    model, held, _ = model_of(family)
    whole = logits_of(model, held, KEY)
    halves = [logits_of(model, held, KEY[rows], PIXELS[rows]) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-11)
    turned = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(logits_of(model, held, KEY[turned], PIXELS[turned]), whole[turned], rtol=0, atol=1e-11)


@families
def test_without_masks_a_model_is_what_timm_made(family):
    """In eval mode, and in train mode with drops off; parameters keep their names."""
    model, held, _ = model_of(family)
    name, fields = FAMILIES[family]
    still = {
        field: 0.0 if "drop" in field and value is not None else value for field, value in (DROPS | fields).items()
    }
    plain = timm_model(name, num_classes=5, **still)
    plain.load_state_dict(model.state_dict())
    plain.train().double()
    for module in plain.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.Dropout)):  # rates that are no field's too
            module.eval()
    with torch.no_grad():
        wanted = plain(PIXELS)
    torch.testing.assert_close(logits_of(model, held, None), wanted, rtol=0, atol=1e-11)
    model.eval()
    torch.testing.assert_close(logits_of(model, held, KEY), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "densenet"])
def test_checkpointed_blocks_have_the_same_gradients(family):
    """The backward runs after `with network.drops(key)` has ended, under another key: the forward's masks hold."""
    model, held, _ = model_of(family)
    recomputing = copy.deepcopy(model)
    theirs = next(module.held for module in recomputing.modules() if isinstance(module, KeyedDrop))
    blocks = checkpoint_blocks(recomputing, theirs)
    calls = dict.fromkeys(blocks, 0)
    for name in blocks:
        first = next(module for module in recomputing.get_submodule(name).modules() if not list(module.children()))
        first.register_forward_pre_hook(lambda module, inputs, name=name: calls.update({name: calls[name] + 1}))
    gradients = []
    for network, own in ((model, held), (recomputing, theirs)):
        with drawing(own, KEY):
            loss = network(PIXELS).square().sum()
        with drawing(own, KEY.at(1)):  # what the next forward draws from must not matter
            loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    scale = max(float(gradient.abs().max()) for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain - recomputed).abs().max() <= 1e-13 * scale
    assert set(calls.values()) == {2}


def test_recomputation_restores_modes_and_leaves_them_as_they_are():
    model, held, _ = model_of("vit")
    blocks = checkpoint_blocks(model, held)
    with drawing(held, KEY):
        loss = model(PIXELS).square().sum()
    wanted = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    model.eval()
    with drawing(held, None):
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        assert held.now.masks == "off"
    assert all(not module.training for name in blocks for module in model.get_submodule(name).modules())
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_an_image_gradient_goes_through_recomputed_blocks_of_frozen_weights():
    gradients = []
    for recompute in (False, True):
        model, held, _ = model_of("vit")
        model.requires_grad_(False)
        if recompute:
            checkpoint_blocks(model, held)
        images = PIXELS.clone().requires_grad_()
        with drawing(held, KEY):
            total = model(images).square().sum()
        gradients += torch.autograd.grad(total, images)
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-6 * gradients[0].abs().max()


@pytest.mark.slow
def test_compiled_checkpointed_blocks_have_the_same_gradients():
    model, held, _ = model_of("vit", depth=1, patch_drop_rate=0.0, attn_drop_rate=0.0, proj_drop_rate=0.0)
    recomputing = copy.deepcopy(model)
    theirs = next(module.held for module in recomputing.modules() if isinstance(module, KeyedDrop))
    checkpoint_blocks(recomputing, theirs)
    compiled = torch.compile(recomputing, backend="aot_eager")
    for update in range(2):
        key = KEY.at(update)
        gradients = []
        for network, own in ((model, held), (compiled, theirs)):
            with drawing(own, key):
                loss = network(PIXELS).square().sum()
            with drawing(own, key.at(1)):
                gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        scale = max(float(gradient.abs().max()) for gradient in gradients[0])
        for plain, recomputed in zip(*gradients, strict=True):
            assert (plain - recomputed).abs().max() <= 1e-13 * scale


def test_recomputed_blocks_are_the_repeated_ones():
    model, held, _ = model_of("vit")
    assert checkpoint_blocks(model) == checkpoint_blocks(model, held) == ["blocks.0", "blocks.1"]
    with drawing(held, KEY):
        loss = model(PIXELS).sum()
    loss.backward()  # asked for twice, done once
    assert checkpoint_blocks(model_of("resnet")[0]) == [f"layer{i}.0" for i in (1, 2, 3, 4)]
    assert checkpoint_blocks(model_of("convnext")[0]) == [f"stages.{i}.blocks.0" for i in range(4)]
    assert checkpoint_blocks(model_of("swin")[0]) == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]


def test_a_model_without_repeated_blocks_says_so():
    with pytest.raises(ConfigError, match="DenseNet has no repeated blocks"):
        checkpoint_blocks(model_of("densenet")[0])


def test_every_drop_of_a_vit_is_keyed_and_attention_uses_its_mask():
    model, _, names = model_of("vit")
    kinds = [type(model.get_submodule(name)) for name in names]
    assert names[:2] == ["pos_drop", "patch_drop"]
    assert names[-1] == "head_drop"
    assert {"blocks.0.attn.attn_drop", "blocks.1.mlp.drop2", "blocks.1.drop_path1"} <= set(names)
    assert set(kinds) == {KeyedDropout, KeyedDropPath, KeyedPatchDropout}
    assert not any(block.attn.fused_attn for block in model.blocks)
    only = model_of("vit", drop_rate=0.0, drop_path_rate=0.0, proj_drop_rate=0.0, patch_drop_rate=0.0)
    assert not torch.equal(logits_of(*only[:2], KEY), logits_of(*only[:2], None))


def test_attention_without_dropout_stays_fused():
    model, _, _ = model_of("deit3")
    assert all(block.attn.fused_attn for block in model.blocks)


@pytest.mark.parametrize("family", ["resnet", "efficientnet", "mobilenet"])
def test_functional_dropout_before_the_classifier_is_keyed(family):
    """logits = W (h m / (1 - p)) + b, with m the keyed mask of the pooled features h."""
    model, held, names = model_of(family, drop_rate=0.5, drop_path_rate=0.0)
    seen = {}
    model.global_pool.register_forward_hook(lambda *call: seen.update(pooled=call[2]))
    logits = logits_of(model, held, KEY)
    head = model.get_classifier()
    with torch.no_grad(), drawing(held, KEY):
        pooled = model.forward_head(model.forward_features(PIXELS), pre_logits=True)
        mask = KeyedDropout(0.5, len(names) - 1, held)(torch.ones_like(pooled))
        assert torch.equal(logits, F.linear(pooled * mask, head.weight, head.bias))
    assert 0.3 < float((mask == 0).float().mean()) < 0.7


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_copied_model_follows_its_own_masks(family):
    model, held, _ = model_of(family)
    copied = copy.deepcopy(model)
    theirs = {module.held for module in copied.modules() if isinstance(module, KeyedDrop)}
    assert len(theirs) == 1
    assert theirs != {held}
    assert torch.equal(logits_of(copied, theirs.pop(), KEY), logits_of(model, held, KEY))
    with pytest.raises(ValueError, match="dropout needs a key"), drawing(held, KEY):
        copied(PIXELS)


def test_a_module_in_two_places_stays_one_module():
    from timm.layers import DropPath

    shared = nn.Dropout(0.5)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared, nn.Sequential(nn.Dropout2d(0.1), DropPath(0.1)))
    assert replace_drops(model, Held()) == ["0", "3.0", "3.1"]
    assert model[0] is model[2]
    assert model[3][0].channels


class Functional(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)

    def inner(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training)


class OwnDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return 1 - super().forward(1 - x)


class Attending(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop = rate

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.drop)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([torch.randn_like(row) for row in x])


def drop_block(rate: float) -> nn.Module:
    from timm.layers import DropBlock2d

    return DropBlock2d(rate)


UNKEYED = {
    "dropblock": drop_block,
    "alpha": lambda rate: nn.AlphaDropout(rate),
    "attention": lambda rate: nn.MultiheadAttention(8, 2, dropout=rate),
    "recurrent": lambda rate: nn.LSTM(4, 4, num_layers=2, dropout=rate),
    "functional": Functional,
    "a subclass": OwnDropout,
    "own attention": Attending,
}


@pytest.mark.parametrize("kind", UNKEYED.values(), ids=UNKEYED)
def test_what_has_no_keyed_form_is_refused_by_name_unless_its_rate_is_0(kind):
    for rate in (0.25, 0.0):
        model = nn.Sequential(nn.Linear(4, 4), kind(rate), nn.Dropout(0.5))
        replace_drops(model, Held())
        if rate == 0:
            refuse_unkeyed(model)
        else:
            with pytest.raises(ConfigError, match=rf"layer '1' \({type(kind(rate)).__name__}.*0\.25"):
                refuse_unkeyed(model)


@pytest.mark.parametrize("kind", [Noisy, nn.RReLU, lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5)])
def test_noise_without_a_rate_is_refused(kind):
    with pytest.raises(ConfigError, match="draws random numbers that no key decides"):
        refuse_unkeyed(nn.Sequential(kind()))


def test_torchvisions_stochastic_depth_is_refused():
    from torchvision.ops import StochasticDepth

    with pytest.raises(ConfigError, match=r"StochasticDepth, p=0\.1"):
        refuse_unkeyed(nn.Sequential(StochasticDepth(0.1, "row")))


def test_timms_own_checkpointing_is_refused():
    model, _, _ = model_of("vit")
    model.set_grad_checkpointing()
    with pytest.raises(ConfigError, match="checkpoint_blocks"):
        refuse_unkeyed(model)


@pytest.mark.parametrize("name", ["sequencer2d_s", "efficientvit_m0", "vit_small_patch16_dinov3", "hiera_tiny_224"])
def test_models_are_judged_by_what_they_would_draw(name):
    """Sequencer can shuffle, EfficientViT can drop branches, DINOv3 can jitter positions: not unless asked to."""
    model = timm_model(name)
    replace_drops(model, Held())
    refuse_unkeyed(model)
