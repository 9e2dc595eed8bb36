"""The store: all pieces of an evaluation that are there, in memory and in a folder that a kill cannot break.

    folder/KEY/header.json            what KEY is of: the images' fingerprint, seed, versions, source files
    folder/KEY/256-00012.pieces       every piece of chunk 12 of 256 images, each added as it is made: NAME@DIGEST.COUNT
    folder/KEY/256-whole.pieces       pieces that are of no chunk
    folder/KEY/256-00012-NAME@...     what is large ("apart/")
    folder/KEY/pictures/NAME@...      few images worth a look ("picture/")

DIGEST is of the piece: its networks' weights, its evaluator's and its own fields, and the same of all that it needs.
COUNT is how many images of the chunk it is made on, and how many all that it needs is, where these differ. So an
evaluation takes what it has in common with earlier ones, and nothing that anything it rests on has changed since. What
is damaged is made again. Of pieces whose rows are each a function of one image (`Piece.by_row`) also those count that
were made in chunks of another size: after an out-of-memory a smaller `chunk` goes on, to the same verdicts but for
rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL
import torch
from torch import Tensor

from robust_train import fingerprint
from robust_train.disk import write_bytes, write_text
from robust_train.evaluate.report import versions
from robust_train.nouns import Dataset, Evaluator, Piece, Shape, Tensors
from robust_train.sealed import Lots, loaded, sealed

At = tuple[int, str]
"""A chunk's number and a piece's name."""
WHOLE = -1  # the number of what is of no chunk
ROWS = "rows"  # the piece that says which images a chunk is of
APART, PICTURE = "apart/", "picture/"
SHOWN = 4  # pictures of a kind that are kept


@dataclass(frozen=True)
class Job:
    """What is to be done on one chunk."""

    on: str  # which images
    number: int  # of the chunk
    lacking: tuple[str, ...]  # pieces
    before: Mapping[str, Tensors]  # what these need and is there


class Store:
    """Pieces by chunk and name. Every call costs what it touches: progress does not count what is there again."""

    def __init__(self, folder: Path | None = None, networks: Mapping[str, str] | None = None) -> None:
        """folder: None keeps all in memory. networks: what tells each one's weights from others, by name."""
        self.folder, self.networks = folder, dict(networks or {})

    def begin(self, evaluator: Evaluator, data: Dataset, seed: int) -> None:
        """Whose pieces, on which images."""
        self.evaluator, self.seed, self._sets = evaluator, seed, {"": data}
        self._maker = fingerprint.tree(evaluator) if self.folder is not None else None
        self.pieces: dict[str, Piece] = {}
        self.resumed = 0  # pieces that an earlier evaluation had made
        self.moved = 0  # of these, those that were made in chunks of another size
        self._held: dict[At, dict[str, Tensor]] = {}
        self._pictures: dict[str, dict[str, Tensor]] = {}
        self._totals: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._homes: dict[str, Path] = {}
        self._chunks: dict[str, list[int]] = {}
        self._lots: dict[Path, Lots] = {}
        self._sums: dict[str, list[float]] = {}
        self._owed = self._paid = 0.0

    def expect(self, pieces: Sequence[Piece]) -> None:
        """All that is to be there in the end; what an earlier evaluation left is read. Costs what is new.

        Raises ValueError for two pieces of one name, for one set of images under two, and for needs that come later.
        """
        for piece in pieces:
            if piece.data is not None and not fingerprint.alike(
                self._sets.setdefault(piece.on, piece.data), piece.data
            ):
                raise ValueError(
                    f"piece {piece.name} has other images on {piece.on!r} than those before it: name another"
                )
            if piece.on not in self._sets:
                raise ValueError(f"piece {piece.name} is on {piece.on!r}, whose images no piece has: give it its data")
        for piece in (*(self._rows(piece) for piece in pieces if not piece.whole), *pieces):
            if piece.name in self.pieces:
                if not _same(self.pieces[piece.name], piece):
                    raise ValueError(f"two pieces are called {piece.name}, and are not the same: name them apart")
                continue
            unknown = [name for name in piece.needs if name not in self.pieces]
            if unknown:
                raise ValueError(f"piece {piece.name} needs {', '.join(unknown)}, which is no piece before it")
            if piece.whole and not all(self.pieces[name].kept for name in piece.needs):
                raise ValueError(f"piece {piece.name} is whole: all that it needs is kept, of every chunk")
            self.pieces[piece.name] = piece
            if not piece.kept:
                continue
            for number in self.numbers(piece.name):
                self._owed += piece.cost * self.count(number, piece)
                found = self._read(number, piece)
                if found is not None:
                    self._take(number, piece, found)
                    self.resumed += not is_rows(piece)

    def numbers(self, name: str) -> Sequence[int]:
        """The chunks that a piece is made on."""
        piece = self.pieces[name]
        if piece.whole:
            return (WHOLE,)
        images = min(self.total(piece.on), self.total(piece.on) if piece.images is None else piece.images)
        return range(-(-images // self.evaluator.chunk))

    def total(self, on: str) -> int:
        """Images of a set that are judged, broken ones included."""
        if on not in self._totals:
            size, limit = self._sets[on].validation_size(), self.evaluator.images
            self._totals[on] = size if limit is None else min(limit, size)
        return self._totals[on]

    def count(self, number: int, piece: Piece) -> int:
        """Images of a chunk that a piece is made on, broken ones included."""
        if piece.whole:
            return 1
        most = self.total(piece.on) if piece.images is None else min(piece.images, self.total(piece.on))
        return min(self.evaluator.chunk, most - number * self.evaluator.chunk)

    @property
    def shape(self) -> Shape:
        """Of one image of the evaluation's own."""
        return self._sets[""].shape

    # -- what is lacking --------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """All that can be done on chunks now, set by set."""
        found: dict[tuple[str, int], list[str]] = {}
        closed = {piece.name for piece in self.pieces.values() if piece.whole and not self.has(WHOLE, piece.name)}
        for piece in self.pieces.values():
            if closed.intersection(piece.needs):
                closed.add(piece.name)
            elif piece.kept and not piece.whole:
                for number in self.numbers(piece.name):
                    if not self.has(number, piece.name):
                        found.setdefault((piece.on, number), []).append(piece.name)
        judged = {at: names for at, names in found.items() if not all(is_rows(self.pieces[name]) for name in names)}
        found = judged or found  # images are not read for their labels alone while there is a round to come
        order = {on: place for place, on in enumerate(self._sets)}
        return [self._job(*at, found[at]) for at in sorted(found, key=lambda at: (order[at[0]], at[1]))]

    def fits(self) -> list[Piece]:
        """The whole pieces that can be made now."""
        lacking = [piece for piece in self.pieces.values() if piece.whole and not self.has(WHOLE, piece.name)]
        return [one for one in lacking if all(self.has(n, name) for name in one.needs for n in self.numbers(name))]

    def _job(self, on: str, number: int, lacking: list[str]) -> Job:
        needed, asked = set(), list(lacking)
        while asked:
            for name in self.pieces[asked.pop()].needs:
                if name not in needed:
                    needed.add(name)
                    asked += [] if self.pieces[name].kept else [name]
        at = {name: WHOLE if self.pieces[name].whole else number for name in needed}
        before = {name: self.get(n, name) for name, n in at.items() if self.has(n, name)}
        return Job(on, number, tuple(lacking), before)

    # -- what is there ----------------------------------------------------------------------------

    def has(self, number: int, name: str) -> bool:
        """Whether a piece is there."""
        return (number, name) in self._held

    def get(self, number: int, name: str) -> dict[str, Tensor]:
        """A piece's tensors, those apart too; none where no image of the chunk is sound."""
        return self._held[number, name] | self._apart(number, self.pieces[name])

    def small(self, number: int, name: str) -> dict[str, Tensor]:
        """The same without those apart."""
        return self._held[number, name]

    def pictures(self, name: str) -> dict[str, Tensor]:
        """The few images of a piece that are worth a look; {} where there are none."""
        piece = self.pieces[name]
        if name not in self._pictures:
            path = self._picture_file(piece)
            self._pictures[name] = {} if path is None or not path.is_file() else loaded(path) or {}
        return self._pictures[name]

    def put(self, number: int, name: str, tensors: Tensors) -> None:
        """Keep a piece: what is large and what is shown first, so that a piece that is there is there whole."""
        piece = self.pieces[name]
        own = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        large = {key: tensor for key, tensor in own.items() if key.startswith(APART)}
        shown = {key: tensor for key, tensor in own.items() if key.startswith(PICTURE)}
        small = {key: tensor for key, tensor in own.items() if key not in large and key not in shown}
        if shown:
            self._pictures[name] = _first(self.pictures(name), shown)
        self._take(number, piece, small if self.folder is not None else {**small, **large})
        if self.folder is None:
            return
        path = self._picture_file(piece)
        if shown and path is not None:
            write_bytes(path, sealed(self._pictures[name]))
        if large:
            write_bytes(self._apart_file(number, piece), sealed(large))
        self._at(self._file(number, piece)).add(self._tag(number, piece), small)

    @property
    def healed(self) -> list[Path]:
        """Files of which something was damaged or cut off, which is made again."""
        return [path for path, lots in self._lots.items() if not lots.whole]

    # -- how far it is ----------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """Of all work, in forward passes at most, what is done."""
        return self._paid / self._owed if self._owed else 0.0

    @property
    def standing(self) -> str:
        """The accuracies so far."""
        return ", ".join(f"{name} {right / count:.1%} of {count:,.0f}" for name, (right, count) in self._sums.items())

    def _take(self, number: int, piece: Piece, tensors: dict[str, Tensor]) -> None:
        self._held[number, piece.name] = tensors
        self._paid += piece.cost * self.count(number, piece)
        if piece.tally and "right" in tensors and len(tensors["right"]):
            sums = self._sums.setdefault(piece.tally, [0.0, 0.0])
            sums[0] += float(tensors["right"].double().sum())
            sums[1] += len(tensors["right"])

    # -- files --------------------------------------------------------------------------------------

    def _rows(self, piece: Piece) -> Piece:
        """Which images the chunks are of that a piece is made on."""
        data = self._sets[piece.on] if piece.on else None
        return Piece(rows_of(piece.on), networks=(), data=data, on=piece.on, cost=0.0)

    def home(self, on: str = "") -> Path:
        """The folder of what is found on some images."""
        assert self.folder is not None
        if on not in self._homes:
            header = {
                "data": fingerprint.tree(self._sets[on]),
                "images": self.total(on) if getattr(self._sets[on], "spread", False) else None,
                "seed": self.seed,
                "source": fingerprint.source(),
                "versions": {**versions(), "numpy": numpy.__version__, "pillow": PIL.__version__},
            }
            home = self.folder / fingerprint.digest(header)
            text = json.dumps(header, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            write_text(home / "header.json", text)
            self._homes[on] = home
        return self._homes[on]

    def _digest(self, piece: Piece) -> str:
        if piece.name not in self._digests:
            names = self.networks if piece.networks is None else piece.networks
            networks = [self.networks[name] for name in names]
            needs = [self._digest(self.pieces[name]) for name in piece.needs]
            made = [] if is_rows(piece) else [self._maker, piece.name, piece.what, piece.whole]
            self._digests[piece.name] = fingerprint.digest([*made, networks, needs])
        return self._digests[piece.name]

    def _tag(self, number: int, piece: Piece) -> str:
        own, *others = self._counts(number, piece).values()
        told = "" if all(count == own for count in others) else f"-{fingerprint.digest(others)}"
        return f"{piece.name}@{self._digest(piece)}.{own}{told}"

    def _counts(self, number: int, piece: Piece) -> dict[At, int]:
        """How many images a piece and all that it rests on are made on: of this chunk, or of all where it is WHOLE."""
        found: dict[At, int] = {}
        asked = [(number, piece.name)]
        while asked:
            number, name = asked.pop()
            one = self.pieces[name]
            number = WHOLE if one.whole else number
            if (number, name) in found:
                continue
            of_all = sum(self.count(n, one) for n in self.numbers(name)) if number == WHOLE else 0
            found[number, name] = of_all if number == WHOLE else max(self.count(number, one), 0)
            asked += [(number, need) for need in one.needs]
        return found

    def _file(self, number: int, piece: Piece, chunk: int | None = None) -> Path:
        named = "whole" if number == WHOLE else f"{number:05d}"
        return self.home(piece.on) / f"{chunk or self.evaluator.chunk}-{named}.pieces"

    def _at(self, path: Path) -> Lots:
        return self._lots.setdefault(path, Lots(path))

    def _apart_file(self, number: int, piece: Piece) -> Path:
        tag = self._tag(number, piece).replace("/", "_")
        return self.home(piece.on) / f"{self.evaluator.chunk}-{max(number, 0):05d}-{tag}.safetensors"

    def _picture_file(self, piece: Piece) -> Path | None:
        if self.folder is None:
            return None
        of_all = [count for (number, _), count in self._counts(0, piece).items() if number == WHOLE]
        told = f".{fingerprint.digest(of_all)}" if of_all else ""
        name = f"{piece.name.replace('/', '_')}@{self._digest(piece)}{told}"
        return self.home(piece.on) / "pictures" / f"{name}.safetensors"

    def _apart(self, number: int, piece: Piece) -> dict[str, Tensor]:
        if self.folder is None:
            return {}
        path = self._apart_file(number, piece)
        return (loaded(path) or {}) if path.is_file() else {}

    def _read(self, number: int, piece: Piece) -> dict[str, Tensor] | None:
        """A piece that an earlier evaluation left; None where there is none."""
        if self.folder is None:
            return None
        found = self._at(self._file(number, piece)).held.get(self._tag(number, piece))
        if found is None and (found := self._elsewhere(number, piece)) is not None:
            self.moved += not is_rows(piece)
        if found is None:
            return None
        apart = [name for name in piece.holds if name.startswith(APART)]
        lacks = [name for name in piece.holds if name not in found and name not in apart]
        return None if lacks or (apart and not self._apart_file(number, piece).is_file()) else found

    def _elsewhere(self, number: int, piece: Piece) -> dict[str, Tensor] | None:
        """A piece put together from rows that were made in chunks of another size; None where some are not there."""
        if not self._by_row(piece):
            return None
        first = number * self.evaluator.chunk
        end = first + self.count(number, piece)
        for chunk in self._sizes(piece.on):
            every = [self._rows_in(piece, n, chunk, first, end) for n in range(first // chunk, -(-end // chunk))]
            there = [one for one in every if one is not None]
            if len(there) == len(every):
                sound = [one for one in there if one]
                return {key: torch.cat([one[key] for one in sound]) for key in sound[0]} if sound else {}
        return None

    def _rows_in(self, piece: Piece, number: int, chunk: int, first: int, end: int) -> dict[str, Tensor] | None:
        """The rows from `first` to `end` of a piece in one chunk of another size; {} where none of these is sound."""
        lots, needed = self._at(self._file(number, piece, chunk)), min(end, (number + 1) * chunk) - number * chunk
        each = (piece, self.pieces[rows_of(piece.on)])
        found, rows = (lots.most(f"{one.name}@{self._digest(one)}", needed) for one in each)
        if not found or not rows:
            return None if found is None or rows is None else {}
        at = rows["position"]
        mine = ((at >= first) & (at < end)).nonzero().flatten()
        if any(len(tensor) <= int(mine.max()) for tensor in found.values() if len(mine)):
            return None
        return {name: tensor[mine] for name, tensor in found.items()} if len(mine) else {}

    def _by_row(self, piece: Piece) -> bool:
        """Whether each of its rows is a function of one image and the networks alone, and so of all that it needs."""
        each = (self.pieces[name] for name in piece.needs)
        return is_rows(piece) or (piece.by_row and not piece.whole and all(self._by_row(one) for one in each))

    def _sizes(self, on: str) -> list[int]:
        """The other sizes of chunks that there is something of, largest first."""
        if on not in self._chunks:
            names = (path.name.partition("-")[0] for path in self.home(on).glob("*-*.pieces"))
            self._chunks[on] = sorted({int(name) for name in names} - {self.evaluator.chunk}, reverse=True)
        return self._chunks[on]


def rows_of(on: str) -> str:
    """The name of the piece that says which images the chunks of a set are of."""
    return f"{ROWS} of {on}" if on else ROWS


def is_rows(piece: Piece) -> bool:
    """Whether it is that piece."""
    return piece.name == rows_of(piece.on)


def _same(one: Piece, other: Piece) -> bool:
    """Whether two pieces of one name are made alike, of the same."""
    plain = ("needs", "networks", "on", "images", "whole", "kept", "by_row")
    return all(getattr(one, name) == getattr(other, name) for name in plain) and (
        fingerprint.alike(one.what, other.what) and fingerprint.alike(one.data, other.data)
    )


def _first(known: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of two lots of pictures the first of each kind, no sample twice in one."""
    whole = {key: torch.cat([known[key], more[key]]) if known else more[key] for key in more}
    kinds, samples = (whole[f"{PICTURE}{name}"].tolist() for name in ("kind", "sample"))
    order = sorted(range(len(kinds)), key=lambda row: (kinds[row], float(whole[f"{PICTURE}order"][row]), samples[row]))
    chosen: list[int] = []
    seen: dict[int, set[int]] = {}
    for row in order:
        kind = seen.setdefault(kinds[row], set())
        if len(kind) < SHOWN and samples[row] not in kind:
            kind.add(samples[row])
            chosen.append(row)
    return {key: tensor[torch.tensor(chosen, dtype=torch.int64)] for key, tensor in whole.items()}
