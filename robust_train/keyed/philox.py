"""Philox 4x32-10 (Salmon et al., SC 2011): a counter and a key to four random 32-bit words.

Words are int64 tensors (or ints) in [0, 2^32). The same bits on every device, and in the kernels.
"""

from __future__ import annotations

from torch import Tensor

Word = Tensor | int
LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, as 32-bit fractions
ROUNDS = 10


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Four words for each counter; the words broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _product(MULTIPLIERS[0], c0)
        high1, low1 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + INCREMENTS[0]) & LOW, (k1 + INCREMENTS[1]) & LOW
    return c0, c1, c2, c3


def _product(multiplier: int, word: Word) -> tuple[Word, Word]:
    """High and low word of a 32 x 32 bit product. Tensors wrap at 64 bits: the bits are right, the sign is masked."""
    whole = multiplier * word
    return (whole >> 32) & LOW, whole & LOW
