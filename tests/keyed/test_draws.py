"""Draws follow their distributions, and depend on key and row alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from robust_train.keyed import Key, beta, bits, integers, normal, partners, uniform

ROWS, COUNT = 400, 250
DRAWS = {
    "bits": lambda key, shape: bits(key, shape),
    "uniform": lambda key, shape: uniform(key, shape),
    "normal": lambda key, shape: normal(key, shape),
    "integers": lambda key, shape: integers(key, shape, 10),
    "beta": lambda key, shape: beta(key, shape, 0.2),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@every_draw
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 5), (3, 1, 7)], ids=str)
def test_a_row_is_drawn_as_in_any_batch(draw, shape):
    key = Key(7).of("attack")
    whole = draw(key, (8, *shape))
    some = draw(key.rows(torch.tensor([5, 3])), (2, *shape))
    assert some.shape == (2, *shape)
    assert torch.equal(some, whole[[5, 3]])
    assert torch.equal(draw(key.rows(torch.arange(8))[4:], (4, *shape)), whole[4:])


@every_draw
def test_seeds_names_and_numbers_are_other_streams(draw):
    keys = [Key(7), Key(8), Key(7 + 2**32), Key(7).of("a"), Key(7).of("b"), Key(7).at(0), Key(7).at(1), Key(7).at(-1)]
    keys += [Key(7).at(0).of("a"), Key(7).of("a").at(0), Key(7).of("aa"), Key(7).of("a").of("a")]
    drawn = [tuple(draw(key, (2, 40)).flatten().tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert tuple(draw(Key(7).of("a"), (2, 40)).flatten().tolist()) == drawn[3]


def test_streams_of_one_key_differ():
    key = Key(0)
    assert (bits(key, (4, 64), stream=0) != bits(key, (4, 64), stream=1)).all()
    assert not torch.equal(uniform(key, (4, 64), stream=0), uniform(key, (4, 64), stream=1))


def test_shapes_without_elements_are_drawn_too():
    assert uniform(Key(0), (0, 3)).shape == (0, 3)
    assert uniform(Key(0), (3, 0, 2)).shape == (3, 0, 2)
    assert normal(Key(0), (0, 2, 2)).shape == (0, 2, 2)


def test_uniform_numbers_are_uniform():
    """Moments within 5 standard errors; chi-square of 256 cells; Kolmogorov and Smirnov; rows and columns unrelated."""
    u = uniform(Key(1), (ROWS, COUNT), dtype=torch.float64)
    n = u.numel()
    assert u.min() >= 0
    assert u.max() < 1
    for power in (1, 2, 3):
        error = math.sqrt((1 / (2 * power + 1) - 1 / (power + 1) ** 2) / n)
        assert abs(float(u.pow(power).mean()) - 1 / (power + 1)) < 5 * error
    cells = torch.bincount((u.flatten() * 256).long(), minlength=256)
    assert stats.chisquare(cells.numpy()).pvalue > 1e-4
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    centred = (u - 0.5) * math.sqrt(12)
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())


def test_each_bit_is_even():
    drawn = bits(Key(2), (ROWS, COUNT)).flatten()
    for place in range(32):
        assert abs(float((drawn >> place & 1).double().mean()) - 0.5) < 2.5 / math.sqrt(len(drawn))


def test_normal_numbers_are_normal():
    z = normal(Key(3), (ROWS, COUNT), dtype=torch.float64)
    n = z.numel()
    for power, moment, square in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        assert abs(float(z.pow(power).mean()) - moment) < 5 * math.sqrt((square - moment**2) / n)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    assert z.isfinite().all()


def test_integers_are_even_below_their_bound():
    drawn = integers(Key(4), (ROWS, COUNT), 7)
    assert stats.chisquare(torch.bincount(drawn.flatten(), minlength=7).numpy()).pvalue > 1e-4
    assert integers(Key(4), (50, 50), 1).sum() == 0
    assert integers(Key(4), (50, 50), 2**31 - 1).min() >= 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
def test_beta_numbers_have_the_beta_distribution(alpha):
    lam = beta(Key(5), (ROWS, COUNT), alpha).flatten().numpy()
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    assert abs(lam.mean() - 0.5) < 5 / math.sqrt(4 * (2 * alpha + 1) * len(lam))
    assert lam.min() >= 0
    assert lam.max() <= 1


def test_beta_one_is_uniform():
    assert torch.allclose(beta(Key(5), (9, 9), 1.0), uniform(Key(5), (9, 9), dtype=torch.float64), rtol=0, atol=1e-12)


def test_partners_are_a_permutation_within_groups():
    met = partners(Key(6), 8, 32)
    assert torch.equal(met.view(4, 8).sort(dim=1)[0].flatten(), torch.arange(32))
    assert len({tuple((row % 8).tolist()) for row in met.view(4, 8)}) == 4


def test_partners_depend_only_on_the_rows_of_the_group():
    key = Key(6).rows(torch.arange(32))
    whole = partners(key, 8, 32)
    assert torch.equal(partners(key[8:24], 8, 16), whole[8:24] - 8)
    for first in range(0, 32, 8):
        assert torch.equal(partners(key[first : first + 8], 8, 8), whole[first : first + 8] - first)


def test_every_permutation_of_a_group_is_as_likely():
    met = partners(Key(7), 3, 3 * 6000).view(-1, 3) % 3
    assert (
        stats.chisquare(torch.bincount(met @ torch.tensor([9, 3, 1]), minlength=27).numpy().take(ORDERS)).pvalue > 1e-4
    )


ORDERS = [5, 7, 11, 15, 19, 21]  # 9a + 3b + c of the six orders of 0, 1, 2


def test_precision_changes_no_draw():
    key = Key(8)
    assert torch.equal(uniform(key, (99, 99)).double(), uniform(key, (99, 99), dtype=torch.float64))
    single, double = normal(key, (99, 99)), normal(key, (99, 99), dtype=torch.float64)
    assert torch.equal(single, double.float())


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)], ids=str)
def test_half_precision_keeps_the_leading_bits_and_never_reaches_one(dtype, digits):
    key = Key(9)
    half, full = uniform(key, (99, 99), dtype=dtype), uniform(key, (99, 99), dtype=torch.float64)
    assert torch.equal(half.double(), (full * 2**digits).floor() / 2**digits)
    assert half.max() < 1


def test_what_does_not_fit_the_rows_is_refused():
    with pytest.raises(ValueError, match="2 rows, but 3 images"):
        uniform(Key(0).rows(torch.arange(2)), (3, 4))
    with pytest.raises(ValueError, match="whole groups of 4"):
        partners(Key(0), 4, 10)
    with pytest.raises(ValueError, match=r"key\.rows"):
        Key(0)[1:]
