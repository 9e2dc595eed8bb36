"""Keyed dropout: Bernoulli masks that key, stream and row decide."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from robust_train.keyed import Key, bits
from robust_train.keyed.drops import KeyedDropout, KeyedDropPath, KeyedPatchDropout, KeyedTableDropout
from robust_train.keyed.mode import Held

KEY = Key(1).of("drops")


def drawing(held: Held, key: Key | None) -> AbstractContextManager[None]:
    """Masks by a key; None: nothing is dropped."""
    return held.entered({"masks": "off" if key is None else key})


def rows(*numbers: int) -> Key:
    return KEY.rows(torch.tensor(numbers))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_share_it_says_and_the_mean(p):
    """A kept element is 1 / (1 - p); their share is 1 - p within 5 standard errors, so the mean is 1."""
    held = Held()
    with drawing(held, KEY):
        y = KeyedDropout(p, 3, held)(torch.ones(100, 500, dtype=torch.float64))
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert abs(float((y > 0).double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / y.numel())


def test_a_table_that_all_images_share_has_one_mask_whichever_images_are_there():
    """On any rank, in any micro-batch, whatever the number of its rows; another key, another mask."""
    held = Held()
    drop = KeyedTableDropout(0.25, 3, held)
    table = torch.ones(37, 500, dtype=torch.float64)
    masks = []
    for key in (rows(0, 1), rows(5), KEY.rows(torch.arange(64)), KEY.of("other").rows(torch.arange(2))):
        with drawing(held, key):
            masks.append(drop(table))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3])
    assert set(masks[0].unique().tolist()) == {0.0, 4 / 3}
    assert abs(float((masks[0] > 0).double().mean()) - 0.75) < 5 * math.sqrt(0.25 * 0.75 / table.numel())
    with pytest.raises(ValueError, match="dropout needs a key"):
        drop(table)


def test_the_mask_is_written_down():
    """Element e of row b is kept where word e of (key, stream, row) is at least 2^32 p."""
    held, x = Held(), torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    with drawing(held, rows(9, 4)):
        y = KeyedDropout(0.25, 6, held)(x)
    keep = bits(rows(9, 4), x.shape, stream=6) >= 2**30
    assert torch.equal(y, torch.where(keep, x * (1 / 0.75), 0.0))


def test_stochastic_depth_drops_whole_images():
    held = Held()
    x = torch.rand(2000, 2, 3, generator=torch.Generator().manual_seed(0)) + 1
    with drawing(held, KEY):
        y, raw = KeyedDropPath(0.2, 0, held)(x), KeyedDropPath(0.2, 0, held, scale=False)(x)
    kept = y.flatten(1).ne(0)
    assert torch.equal(kept.all(1), kept.any(1))
    assert abs(float(kept[:, 0].double().mean()) - 0.8) < 5 * math.sqrt(0.16 / 2000)
    assert torch.equal(y[kept[:, 0]], x[kept[:, 0]] * 1.25)
    assert torch.equal(raw, torch.where(kept[:, 0, None, None], x, 0.0))


def test_channel_dropout_drops_whole_channels():
    held = Held()
    with drawing(held, KEY):
        y = KeyedDropout(0.5, 0, held, channels=True)(torch.ones(40, 16, 3, 3))
    assert torch.equal(y.amin((2, 3)), y.amax((2, 3)))
    assert 0.4 < float((y > 0).float().mean()) < 0.6


@pytest.mark.parametrize("ordered", [False, True])
def test_patch_dropout_keeps_a_choice_of_patches_and_every_prefix_token(ordered):
    held, tokens = Held(), torch.arange(11.0).expand(500, 11)[:, :, None].repeat(1, 1, 2)
    drop = KeyedPatchDropout(0.4, 0, held, prefix=1, ordered=ordered, indices=True)
    with drawing(held, KEY):
        kept, chosen = drop(tokens)
    assert kept.shape == (500, 1 + 6, 2)
    assert (kept[:, 0] == 0).all()
    assert torch.equal(kept[:, 1:, 0], chosen + 1.0)
    assert all(len(set(row)) == 6 for row in chosen.tolist())
    assert torch.equal(chosen, chosen.sort(dim=1)[0]) == ordered
    share = torch.bincount(chosen.flatten(), minlength=10) / 500
    assert ((share - 0.6).abs() < 5 * math.sqrt(0.24 / 500)).all()


def test_one_patch_is_left_at_least():
    held = Held()
    with drawing(held, KEY):
        assert KeyedPatchDropout(0.99, 0, held, prefix=0)(torch.ones(3, 4, 2)).shape == (3, 1, 2)


KINDS = {
    "dropout": lambda held, stream=0: KeyedDropout(0.5, stream, held),
    "path": lambda held, stream=0: KeyedDropPath(0.5, stream, held),
    "patches": lambda held, stream=0: KeyedPatchDropout(0.5, stream, held, prefix=0),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_key_stream_and_row_decide_a_mask_and_nothing_else(kind):
    held, x = Held(), torch.rand(64, 8, 3, generator=torch.Generator().manual_seed(0)) + 1
    drop = kind(held)

    def dropped(key: Key, images: torch.Tensor, module: nn.Module = drop) -> torch.Tensor:
        with drawing(held, key):
            return module(images)

    whole = dropped(KEY, x)
    torch.manual_seed(5)
    assert torch.equal(dropped(KEY.rows(torch.arange(64)), x), whole)
    assert torch.equal(dropped(rows(40, 7), x[[40, 7]]), whole[[40, 7]])
    assert not torch.equal(dropped(KEY.at(1), x), whole)
    assert not torch.equal(dropped(KEY, x, kind(held, stream=1)), whole)


def test_masks_of_two_modules_are_independent():
    held, ones = Held(), torch.ones(100, 100)
    with drawing(held, KEY):
        a, b = (KeyedDropout(0.5, stream, held)(ones) > 0 for stream in (0, 1))
    assert abs(float((a == b).double().mean()) - 0.5) < 5 * 0.5 / 100


def test_windows_of_an_image_belong_to_its_row():
    """A layer that sees [B n, ...] gives window i of an image the words that follow window i - 1's."""
    held = Held()
    drop = KeyedDropout(0.5, 0, held)
    ones = torch.ones(3, 4, 6)
    with drawing(held, rows(5, 2, 8)):
        whole = drop(ones.view(12, 6))
        assert torch.equal(whole.view(3, 4, 6), drop(ones))
    with drawing(held, rows(8)):
        assert torch.equal(drop(ones[:1].view(4, 6)), whole[8:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_precision_changes_no_mask(dtype):
    held = Held()
    drop = KeyedDropout(0.1, 0, held)
    with drawing(held, KEY):
        single, other = drop(torch.ones(50, 50)), drop(torch.ones(50, 50, dtype=dtype))
    assert other.dtype == dtype
    assert torch.equal(single > 0, other > 0)


def test_the_gradient_meets_the_same_mask():
    held, x = Held(), torch.randn(4, 9, requires_grad=True, generator=torch.Generator().manual_seed(0))
    with drawing(held, KEY):
        y = KeyedDropout(0.5, 0, held)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, (y != 0).float() * 2)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_is_dropped_in_eval_mode_or_when_off(kind):
    held, x = Held(), torch.ones(8, 8, 3)
    drop = kind(held)
    with drawing(held, None):
        assert drop(x) is x
    with drawing(held, KEY):
        assert drop.eval()(x) is x
    assert drop(x) is x
    assert KeyedDropout(0.0, 0, held)(x) is x


def test_training_without_a_key_names_the_remedy():
    with pytest.raises(ValueError, match=r"with network\.drops\(key\)"):
        KeyedDropout(0.1, 0, Held())(torch.ones(2, 2))


def test_rows_that_are_not_the_batchs_are_refused():
    held = Held()
    with drawing(held, rows(1, 2, 3)), pytest.raises(ValueError, match=r"names 3 rows.*sees 4"):
        KeyedDropout(0.1, 0, held)(torch.ones(4, 2))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_rate_that_leaves_nothing_is_refused(p):
    with pytest.raises(ValueError, match="drop rate"):
        KeyedDropout(p, 0, Held())


def test_keys_nest_and_end_with_their_block():
    held = Held()
    drop = KeyedDropout(0.5, 0, held)
    ones = torch.ones(4, 99)
    with drawing(held, KEY):
        outer = drop(ones)
        with drawing(held, None):
            assert drop(ones) is ones
        with pytest.raises(RuntimeError, match="inside"), drawing(held, KEY.at(1)):
            raise RuntimeError("inside")
        assert torch.equal(drop(ones), outer)
    assert held.now.masks is None


def test_a_compiled_network_is_compiled_once_for_all_keys():
    """Seed words as ints would make one graph an update."""
    counter = torch._dynamo.testing.CompileCounter()
    held = Held()
    network = nn.Sequential(KeyedDropout(0.5, 0, held), KeyedDropPath(0.5, 1, held))
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=counter)
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    for update in range(4):
        with drawing(held, KEY.at(update).rows(torch.arange(4) + update)):
            assert torch.equal(compiled(x), network(x))
    torch._dynamo.reset()
    assert counter.frame_count == 1
