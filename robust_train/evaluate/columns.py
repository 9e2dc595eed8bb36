"""Columns: what is there of an evaluation, piece by piece over all chunks; what a report is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from robust_train.evaluate.store import PICTURE, Store, is_rows, rows_of
from robust_train.nouns import Piece, Shape


class Columns(Mapping[str, dict[str, Tensor]]):
    """The tensors of each piece, joined over chunks in the order of the data set; pieces that lack a chunk are absent.

    Those apart are left out: `chunks` reads them one after the other.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._joined: dict[str, dict[str, Tensor]] = {}

    @property
    def pieces(self) -> Mapping[str, Piece]:
        """All that was asked for, in order."""
        return self._store.pieces

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self:
            raise KeyError(name)
        if name not in self._joined:
            self._joined[name] = joined([self._store.small(n, name) for n in self._store.numbers(name)])
        return self._joined[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name not in self.pieces:
            return False
        numbers = self._store.numbers(name)
        return bool(numbers) and all(self._store.has(number, name) for number in numbers)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.pieces if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def shape(self) -> Shape:
        """Of one image of the evaluation's own."""
        return self._store.shape

    @property
    def judged(self) -> list[str]:
        """The pieces that are kept, in order, but those that only say which images there are."""
        return [name for name, piece in self.pieces.items() if piece.kept and not is_rows(piece)]

    def chunks(self, name: str) -> Iterator[dict[str, Tensor]]:
        """A piece chunk after chunk, with what lies apart; chunks without a sound image are left out."""
        every = (self._store.get(number, name) for number in self._store.numbers(name))
        return (tensors for tensors in every if tensors)

    def rows(self, on: str = "") -> tuple[Tensor, Tensor]:
        """([N] samples, [N] labels) of some images that were judged."""
        found = self[rows_of(on)]
        return found["sample"], found["labels"]

    def pictures(self, name: str) -> dict[str, Tensor]:
        """The few images of a piece that are worth a look, by "kind", "order", "sample"...; of those judged now."""
        found = self._store.pictures(name)
        if not found:
            return {}
        here = torch.isin(found[f"{PICTURE}sample"], self.rows(self.pieces[name].on)[0])
        return {key.removeprefix(PICTURE): tensor[here] for key, tensor in found.items()}


def joined(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of one chunk after the other, row under row. A chunk without a sound image has none."""
    whole = [chunk for chunk in chunks if chunk]
    return {key: torch.cat([chunk[key] for chunk in whole]) for key in whole[0]} if whole else {}
