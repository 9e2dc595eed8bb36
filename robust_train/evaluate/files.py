"""Pieces of an evaluation as files in a folder: what was done stays done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from robust_train.disk import digest, write_bytes, write_text
from robust_train.evaluate.work import Piece


class Files:
    """Tensors of pieces in a folder that a kill cannot break.

    folder/DIGEST/ holds header.json, which says what the digest is of, and a safetensors file for each piece, whole or
    absent. counts: the images of each piece; a chunk that a limit cut is another piece.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], counts: Mapping[Piece, int]) -> None:
        text = json.dumps(header, indent=1, sort_keys=True, ensure_ascii=False)
        self.counts = counts
        self.folder = folder / digest(text)[:12]
        write_text(self.folder / "header.json", text + "\n")

    def read(self) -> Iterator[tuple[Piece, dict[str, Tensor]]]:
        """Every piece that is there; a file that cannot be read is deleted, to be made again."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        for at in self.counts:
            path = self._path(at)
            if path.name in there:
                try:
                    yield at, load_file(path)
                except (SafetensorError, OSError):
                    path.unlink(missing_ok=True)

    def write(self, at: Piece, tensors: Mapping[str, Tensor]) -> None:
        """A piece's file."""
        write_bytes(self._path(at), save(dict(tensors)))

    def _path(self, at: Piece) -> Path:
        number, name = at
        return self.folder / f"{number:05d}-{name.replace('/', '-')}-{self.counts[at]}.safetensors"
