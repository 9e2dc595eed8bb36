"""The smallest steps onto a hyperplane inside the box, for the norms of the balls."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 32  # of Newton's; images need 3 to 10, and a concave function of pieces of bounded slopes few more


def onto_hyperplane(norm: str, points: Tensor, normals: Tensor, gaps: Tensor) -> Tensor:
    """d [..., D] of the least norm with <normals, d> = gaps and points + d in [0, 1]; the norm is linf, l2 or l1.

        |d_i| = min(s p_i, c_i),    p_i = 1 (L-infinity) or |w_i| (L2),    c_i the room to the box in d_i's direction

    s is the root of sum_i |w_i| min(s p_i, c_i) = |gap|: concave, of linear pieces, so that Newton's steps from s = 0
    never pass the root and end on its piece, without sorting and without a host sync. L1: pixels of the largest |w_i|
    go to the box's face first, one goes part of the way. Out of the plane's reach: the corner of the box that is
    nearest to it. Where w_i = 0, d_i = 0. Croce and Hein 2020 (arXiv 1907.02044, section 3.1).

    points [..., D] in [0, 1], normals broadcast to them, gaps [...] = b - <normals, points>. Rows without a finite
    normal or gap come out NaN.
    """
    largest = normals.abs().amax(-1, keepdim=True)
    weight = normals.abs() / largest.masked_fill(largest == 0, 1)  # else squares of small gradients underflow
    gap = gaps[..., None]
    side = normals.sign() * gap.sign()
    room = torch.where(side > 0, 1 - points, points)
    need = gap.abs() / largest.masked_fill(largest == 0, 1)
    length = _filled(weight, room, need) if norm == "l1" else _level(norm, weight, room, need)
    return side * length


def dual_norm(norm: str, normals: Tensor) -> Tensor:
    """[...] the norm of `normals` [..., D] that divides a gap to give the distance without a box."""
    order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[norm]
    return torch.linalg.vector_norm(normals, order, dim=-1)


def _level(norm: str, weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """|d| [..., D]: min(s p, room) at the least s that gives what is needed, or at one beyond every room."""
    even = norm == "linf"
    full_at = room if even else room / weight  # 0 / 0 is NaN, never above s: its weight is 0, and so is its share
    slope, gain = (weight if even else weight * weight), weight * room
    s = 0 * need  # NaN where that is
    for _ in range(ROUNDS):
        free = full_at > s
        rise = torch.where(free, slope, 0).sum(-1, keepdim=True)
        left = need - torch.where(free, 0, gain).sum(-1, keepdim=True)
        ahead = torch.maximum(s, left / rise)  # rounding must not turn it back
        ahead = torch.where(rise > 0, ahead, s)
        if not s.is_cuda and torch.equal(ahead, s):  # a read costs nothing here; further rounds change nothing
            break
        s = ahead
    return torch.minimum(s if even else s * weight, room)


def _filled(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """|d| [..., D]: the room of the largest weights, as much of it as is needed."""
    weight = weight.expand_as(room)
    ordered, order = weight.sort(dim=-1, descending=True, stable=True)
    space = room.gather(-1, order)
    gain = ordered * space
    before = gain.cumsum(-1) - gain
    used = (need - before).clamp(min=0) / ordered.masked_fill(ordered == 0, 1)
    return torch.zeros_like(room).scatter_(-1, order, torch.minimum(used, space))
