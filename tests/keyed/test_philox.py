"""Salmon et al. 2011: Philox 4x32-10, against the known answers published with Random123."""

from __future__ import annotations

import pytest
import torch

from robust_train.keyed import Key, bits, philox
from robust_train.keyed.draws import words

ONES = 0xFFFFFFFF
ANSWERS = [  # counter, key, words: Random123's kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (  # digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_the_published_vectors_are_met_by_ints_and_by_tensors(counter, key, answer):
    assert philox(counter, key) == answer
    tensors = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in tensors) == answer


def test_tensors_of_any_shape_are_evaluated_like_ints():
    generator = torch.Generator().manual_seed(0)
    counter = tuple(torch.randint(0, 2**32, shape, generator=generator) for shape in [(3, 1, 7), (1, 5, 1), (1,), (7,)])
    key = (ONES, 0x80000000)
    drawn = torch.broadcast_tensors(*philox(counter, key))
    flat = [word.flatten().tolist() for word in torch.broadcast_tensors(*counter)]
    plain = [philox(one, key) for one in zip(*flat, strict=True)]
    assert list(zip(*(word.flatten().tolist() for word in drawn), strict=True)) == plain
    assert all(0 <= word <= ONES for row in plain for word in row)


def test_a_row_meets_its_words_in_the_order_that_is_written_down():
    """Element e is word e % 4 at counter (e // 4, stream, row's low word, row's high word)."""
    row, stream = (6 << 32) + 0x90000001, 11
    key = Key(0x299F31D0A4093822).rows(torch.tensor([3, row]))
    drawn = bits(key, (2, 3, 3), stream=stream)[1].flatten().tolist()
    wanted = [philox((block, stream, 0x90000001, 6), (0xA4093822, 0x299F31D0)) for block in range(3)]
    assert drawn == [word for four in wanted for word in four][:9]


def test_key_words_may_be_tensors():
    row = torch.arange(3)
    key = Key(0xFEDCBA9876543210)
    low, high = torch.tensor(key.words)
    assert torch.equal(words((low, high), row, 10, 2), words(key.words, row, 10, 2))
