"""A set each of whose batches comes several times."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from robust_train.data.repeated import Repeated
from robust_train.nouns import Place
from tests.toys import ToyImages


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_update_u_has_batch_u_over_times_from_any_start(start: int) -> None:
    once = list(islice(ToyImages().batches(Place(), 8, 3), 4))
    found = islice(Repeated(ToyImages(), 3).batches(Place(), 8, 3, start), 5)
    for update, batch in enumerate(found, start):
        assert torch.equal(batch.images, once[update // 3].images)
        assert torch.equal(batch.sample, once[update // 3].sample)


def test_it_is_the_set_in_all_else_and_times_is_positive() -> None:
    repeated, plain = Repeated(ToyImages(), 2), ToyImages()
    assert (repeated.classes, repeated.shape, repeated.checksums()) == (plain.classes, plain.shape, plain.checksums())
    with pytest.raises(ValueError, match="times=0"):
        Repeated(plain, 0)
