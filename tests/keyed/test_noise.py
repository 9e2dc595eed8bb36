"""Keyed noise: normal numbers that key, stream and row decide; drawn, fixed or off."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing
from scipy import stats
from torch import Tensor, nn

from robust_train.keyed import Key, philox
from robust_train.keyed.mode import Held
from robust_train.keyed.noise import KeyedNoise, connect, standard_normal

KEY = Key(1).of("noise")
Shape = tuple[int, ...]


def drawn(shape: Shape, key: Key = KEY, stream: int = 0, row: Tensor | None = None, dtype=torch.float32) -> Tensor:
    low, high = torch.tensor(key.words)
    return standard_normal(
        (low, high), torch.arange(shape[0]) if row is None else row, torch.empty(shape, dtype=dtype), stream
    )


def plain(element: int, count: int, row: int, stream: int, key: tuple[int, int]) -> float:
    """One number, in float64, from one counter by ints: quarter p of a row has words (0, 2) or (1, 3)."""
    quarter = -(-count // 4)
    part, place = divmod(element, quarter)
    words = philox((place, stream, row & 0xFFFFFFFF, row >> 32), key)
    u, v = 1 - (words[part % 2] >> 8) / 2**24, (words[part % 2 + 2] >> 8) / 2**24
    return math.sqrt(-2 * math.log(u)) * (math.cos if part < 2 else math.sin)(2 * math.pi * v)


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (3, 5, 5), (2, 3, 4)])
def test_an_element_is_a_function_of_key_stream_row_and_place(shape):
    """Box and Muller at one counter at a time, for odd and even counts and a row beyond 32 bits."""
    key, row, stream, count = Key(0xFEDCBA9876543210), [3, (6 << 32) + 0x90000001], 11, math.prod(shape)
    found = drawn((2, *shape), key, stream, torch.tensor(row))
    wanted = [[plain(element, count, one, stream, key.words) for element in range(count)] for one in row]
    torch.testing.assert_close(found.flatten(1).double(), torch.tensor(wanted).double(), rtol=1e-5, atol=2e-6)


def test_the_numbers_are_normal():
    """Mean, variance, skewness and kurtosis within 5 standard errors, and Kolmogorov and Smirnov's distance."""
    x = drawn((64, 8, 64, 64)).double().flatten()
    n = len(x)
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    assert abs(float(x.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(x.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(x.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    assert stats.kstest(x[::4].numpy(), "norm").pvalue > 1e-3
    assert float(x.abs().max()) <= math.sqrt(2 * 24 * math.log(2))  # u is at least 2^-24


@pytest.mark.parametrize("part", range(4))
def test_each_quarter_of_a_row_is_normal(part):
    """A quarter has one word pair and one of cosine and sine: a fault of one is seen there."""
    x = drawn((200, 400)).view(200, 4, 100)[:, part].double().flatten()
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double().flatten(), other.double().flatten()]))[0, 1])


def test_rows_streams_keys_and_quarters_are_independent():
    """Of them and of their squares no pair correlates beyond 5 standard errors."""
    count = 40_000
    x = drawn((3, count))
    row, stream, key, far = x[1], drawn((1, count), stream=1)[0], drawn((1, count), KEY.at(1))[0], x[2]
    pairs = [(x[0], other) for other in (row, stream, key, far)]
    quarters = x.view(3, 4, -1)
    pairs += [(quarters[:, a], quarters[:, b]) for a in range(4) for b in range(a)]
    for one, other in pairs:
        bound = 5 / math.sqrt(one.numel())
        assert abs(correlation(one, other)) < bound
        assert abs(correlation(one.square(), other.square())) < bound


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 5), (8, 16, 16)])
@pytest.mark.parametrize("split", [1, 2, 3, 7, 16])
def test_rows_of_a_part_are_rows_of_the_whole_to_the_bit(shape, split):
    whole = drawn((20, *shape))
    parts = [drawn((len(rows), *shape), row=rows) for rows in torch.arange(20).split(split)]
    assert torch.equal(torch.cat(parts), whole)


def test_blocks_that_fit_a_cache_change_no_bit(monkeypatch):
    whole = drawn((20, 3, 5, 5))
    monkeypatch.setattr("robust_train.keyed.noise.BLOCK", 40)
    assert torch.equal(drawn((20, 3, 5, 5)), whole)


def test_precision_changes_no_number():
    """Drawn in float32: float64 has the same numbers, half precision their roundings."""
    single = drawn((4, 33))
    assert torch.equal(drawn((4, 33), dtype=torch.float64), single.double())
    assert torch.equal(drawn((4, 33), dtype=torch.bfloat16), single.bfloat16())
    assert drawn((0, 33)).shape == (0, 33)


class Noisy(nn.Module):
    """Its input and noise, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = KeyedNoise(), KeyedNoise()

    def forward(self, images: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            noise = layer(images)
            images = images if noise is None else images + noise
        return images


ZEROS = torch.zeros(3, 5)


def made() -> tuple[Held, Noisy]:
    source, model = Held(), Noisy()
    assert connect(model, source) == ["first", "second"]
    return source, model


def forward(source: Held, model: nn.Module, images: Tensor = ZEROS) -> Tensor:
    with source.under(source.now.of_forward(len(images), images.device)):
        return model(images)


OWN = KEY.of("noise")  # what noise of a key is drawn from


def test_each_module_draws_from_its_own_stream_of_the_forwards_key():
    source, model = made()
    with source.entered({"noise": KEY}):
        found = [forward(source, model) for _ in range(2)]
    for number, one in enumerate(found):
        key = OWN.at(number)
        assert torch.equal(one, drawn((3, 5), key, 0) + drawn((3, 5), key, 1))


def test_exact_noise_is_the_keys_own_at_every_forward():
    source, model = made()
    with source.entered({"matched": KEY}):
        one, other = forward(source, model), forward(source, model)
    assert torch.equal(one, other)
    assert torch.equal(one, drawn((3, 5), OWN, 0) + drawn((3, 5), OWN, 1))


def test_rows_of_the_key_are_the_rows_drawn():
    source, model = made()
    row = torch.tensor([7, 2, 5 << 33])
    with source.entered({"matched": KEY.rows(row)}):
        found = forward(source, model)
    assert torch.equal(found, drawn((3, 5), OWN, 0, row) + drawn((3, 5), OWN, 1, row))


def test_rows_that_are_not_the_images_are_refused():
    """Counted from 0 they would give images the noise of others, in silence."""
    source, model = made()
    for row in (torch.arange(1), torch.arange(2), torch.arange(4), torch.arange(0)):
        for said in ({"matched": KEY.rows(row)}, {"noise": KEY.rows(row)}, {"noise": KEY.rows(row), "noisy": "fixed"}):
            with pytest.raises(ValueError, match=rf"noise names {len(row)} rows, but a layer sees 3"):  # noqa: SIM117
                with source.entered(said):
                    forward(source, model)


def test_windows_of_an_image_share_what_its_row_draws():
    source, model = made()
    row = torch.tensor([7, 2])
    with source.entered({"matched": KEY.rows(row)}):
        whole = forward(source, model, torch.zeros(2, 15))
        with source.under(source.now.of_forward(2, whole.device)):
            cut = model(torch.zeros(6, 5))
    assert torch.equal(cut.view(2, 15), whole)


def test_fixed_noise_is_one_draw_an_image_under_any_key_and_none_is_none():
    source, model = made()
    with source.entered({"noisy": "fixed"}):
        one = forward(source, model)
        with source.entered({"noise": KEY.at(5)}):
            assert torch.equal(forward(source, model), one)
            row = torch.tensor([2, 0])
            with source.entered({"noise": KEY.rows(row)}):
                assert torch.equal(forward(source, model, ZEROS[:2]), one[row])
    assert one.abs().min() > 0
    with source.entered({"noisy": "off"}), source.entered({"noise": KEY}):
        assert torch.equal(forward(source, model), ZEROS)


def test_without_a_key_forwards_draw_one_after_the_other():
    source, model = made()
    found = [forward(source, model) for _ in range(3)]
    assert len({one.sum().item() for one in found}) == 3
    again, other = made()
    assert all(torch.equal(forward(again, other), one) for one in found)


def test_keys_and_modes_nest_and_what_was_before_comes_back():
    source, model = made()
    with source.entered({"noise": KEY}):
        first = forward(source, model)
        inner = KEY.of("inner")
        with source.entered({"noise": inner}):
            assert torch.equal(forward(source, model), drawn((3, 5), inner.of("noise").at(0), 0) + second(inner))
        with source.entered({"noisy": "off"}):
            assert torch.equal(forward(source, model), ZEROS)  # a forward all the same: number 1
        with pytest.raises(RuntimeError, match="inside"), source.entered({"noisy": "fixed", "matched": KEY.at(9)}):
            raise RuntimeError("inside")
        assert (source.now.noisy, source.now.noise.matched, source.now.noise.forwards) == ("drawn", False, 2)
        third = forward(source, model)
    assert torch.equal(first, drawn((3, 5), OWN.at(0), 0) + second(KEY))
    assert torch.equal(third, drawn((3, 5), OWN.at(2), 0) + drawn((3, 5), OWN.at(2), 1))
    assert (source.now.noisy, source.now.noise.key.seed, source.now.noise.forwards) == ("drawn", 0, 0)
    assert source.now.drawn is None


def second(key: Key) -> Tensor:
    """What the second module draws at a key's first forward."""
    return drawn((3, 5), key.of("noise").at(0), 1)


def test_a_forward_of_its_own_begins_by_itself():
    """A noisy module outside a network draws all the same."""
    x = KeyedNoise()(ZEROS)
    assert x is not None
    assert torch.equal(x, drawn((3, 5), Key(0).at(0)))


def test_noise_has_no_graph():
    source, model = made()
    images = ZEROS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(forward(source, model, images).sum(), images)
    assert torch.equal(gradient, torch.ones_like(images))
    assert not model.first(images).requires_grad


def test_a_compiled_network_is_compiled_once_for_all_keys():
    """Key words as ints would make one graph a forward."""
    counter = torch._dynamo.testing.CompileCounter()
    source, model = made()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter)
    for update in range(4):
        with source.entered({"matched": KEY.at(update).rows(torch.arange(3) + update)}):
            assert torch.equal(forward(source, compiled), forward(source, model))
    torch._dynamo.reset()
    assert counter.frame_count == 1
