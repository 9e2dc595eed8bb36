"""Key: the name of a stream of random numbers, given as an argument wherever something is drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Key:
    """A stream of random numbers, one substream for each row (image).

        Key(run.seed).at(update).of("attack").rows(batch.position)

    `at` and `of` derive other streams (BLAKE2b of the path, so names never collide by accident); `rows` says which
    images it is for: int64 [B], positions in the global batch in training, samples of the data set in evaluation.
    Draws then depend on (seed, path, row) alone, never on the device, the rank or the other rows.
    """

    seed: int  # 64 bits: Philox's key words
    row: Tensor | None = None  # [B] int64; None: rows 0, 1, 2, ... of whatever is drawn

    def of(self, name: str) -> Key:
        """The stream called `name` below this one."""
        return self._derive(b"of" + name.encode())

    def at(self, index: int) -> Key:
        """The stream number `index` below this one: an update, a restart, a step."""
        return self._derive(b"at" + int(index).to_bytes(8, "little", signed=True))

    def rows(self, row: Tensor | None) -> Key:
        """The same stream for these images."""
        return replace(self, row=row)

    def naming(self, images: Tensor) -> Key:
        """The same stream with a row for each of `images` [B, ...]: its own, or 0, 1, 2, ... where it names none."""
        return self if self.row is not None else self.rows(torch.arange(len(images), device=images.device))

    def __getitem__(self, keep: Tensor | slice) -> Key:
        """The same stream for some of its images."""
        if self.row is None:
            raise ValueError("this key names no rows yet: say key.rows(position) before taking some of them")
        return replace(self, row=self.row[keep])

    @property
    def words(self) -> tuple[int, int]:
        """Philox's two key words."""
        return self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF

    def _derive(self, path: bytes) -> Key:
        seed = (self.seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        return replace(self, seed=int.from_bytes(hashlib.blake2b(seed + path, digest_size=8).digest(), "little"))
