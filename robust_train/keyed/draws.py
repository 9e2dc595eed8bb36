"""What is drawn from keys: uniform, normal, integers, partners within groups, Beta.

Every draw takes a shape [B, ...] and gives row b the numbers of the key's row b. Element e of a row is word e % 4 of
Philox at counter (e // 4, stream, row's low word, row's high word). Values are multiples of 2^-24, the same in float32
and float64; half precision keeps as many leading bits as it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from robust_train.keyed.key import Key
from robust_train.keyed.philox import LOW, philox


def bits(key: Key, shape: Sequence[int], device: torch.device | str = "cpu", stream: int = 0) -> Tensor:
    """int64 [B, ...] of random 32-bit words."""
    count = math.prod(shape[1:])
    return words(key.words, rows_of(key, shape[0], device), count, stream).view(*shape)


def words(key: tuple[Tensor | int, Tensor | int], row: Tensor, count: int, stream: int = 0) -> Tensor:
    """int64 [B, count] words of rows [B]; the key's words may be tensors (a compiled network's masks)."""
    block = torch.arange((count + 3) // 4, device=row.device)
    row = row[:, None]
    drawn = philox((block[None], stream, row & LOW, (row >> 32) & LOW), key)
    return torch.stack(torch.broadcast_tensors(*drawn), dim=2).flatten(1)[:, :count]


def uniform(
    key: Key,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    stream: int = 0,
) -> Tensor:
    """U[0, 1), [B, ...]."""
    digits = min(24, 1 - round(math.log2(torch.finfo(dtype).eps)))  # so that nothing rounds up to 1
    return (bits(key, shape, device, stream) >> 32 - digits).to(dtype) * 2**-digits


def normal(
    key: Key, shape: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """N(0, 1), [B, ...], by Box and Muller: sqrt(-2 ln u) cos(2 pi v), with u in (0, 1]."""
    count = math.prod(shape[1:])
    u, v = uniform(key, (shape[0], 2, count), device, torch.float64).unbind(1)
    return ((-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()).to(dtype).view(*shape)


def integers(key: Key, shape: Sequence[int], high: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform on {0, ..., high - 1}, int64 [B, ...]: floor(high w / 2^32), biased by less than high / 2^32."""
    return bits(key, shape, device) * high >> 32


def partners(key: Key, group: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [B]: for each row the row it meets, a random permutation inside each `group` consecutive rows."""
    if size % group:
        raise ValueError(f"{size} images are not whole groups of {group}: images mix among {group} consecutive ones")
    order = uniform(key, (size, 1), device, torch.float64).view(-1, group).argsort(dim=1, stable=True)
    return (order + torch.arange(0, size, group, device=device)[:, None]).flatten()


def beta(key: Key, shape: Sequence[int], alpha: float, device: torch.device | str = "cpu") -> Tensor:
    """Beta(alpha, alpha), float64 [B, ...]: its quantile function (SciPy's at 4,097 nodes, else linear) at U[0, 1)."""
    nodes = _beta_quantiles(float(alpha)).to(device)
    place = uniform(key, shape, device, torch.float64) * (len(nodes) - 1)
    below = place.long()
    return torch.lerp(nodes[below], nodes[below + 1], place - below)


def rows_of(key: Key, size: int, device: torch.device | str) -> Tensor:
    """The key's rows on a device, checked against the number of images drawn for."""
    if key.row is None:
        return torch.arange(size, device=device)
    if len(key.row) != size:
        raise ValueError(f"the key names {len(key.row)} rows, but {size} images are drawn for")
    return key.row.to(device)


@lru_cache(maxsize=16)
def _beta_quantiles(alpha: float) -> Tensor:
    from scipy.special import betaincinv

    return torch.as_tensor(betaincinv(alpha, alpha, torch.linspace(0, 1, 4097, dtype=torch.float64).numpy()))
