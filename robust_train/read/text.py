"""Small text files as people have them: lists, ground truths, classes.json. One message for what is none."""

from __future__ import annotations

import codecs
import csv
import json
from pathlib import Path
from typing import Any

from robust_train.read.errors import DataError
from robust_train.read.kinds import HEAD, kind_of

Names = tuple[str, ...]
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # what some shells and editors of Windows write


def text_of(path: Path, what: str, remedy: str) -> str:
    """The text of a file: UTF-8 or UTF-16, with or without a byte order mark.

    what: as messages call it, "the list of images"; remedy: what to do where it is none. Raises DataError for a file
    that is absent, no file, empty, binary, or in another encoding. Reads no more than its head of what is no text.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            wide = head.startswith(WIDE)
            found = kind_of(head) or (None if wide or b"\0" not in head else "no text, but bytes")
            if found is not None:
                raise DataError(f"{what} {path} is {found}. {remedy}")
            content = head + file.read()
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"{what} {path} {why}. {remedy}") from error
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{what} {path} is no UTF-8 (line {line}): save it in that encoding. {remedy}") from error
    if not text.strip():
        raise DataError(f"{what} {path} is empty. {remedy}")
    return text


def lines_of(path: Path, what: str, remedy: str) -> list[str]:
    """Its lines that are not empty, without the spaces around them."""
    return [line.strip() for line in text_of(path, what, remedy).splitlines() if line.strip()]


def json_of(path: Path, what: str, remedy: str, kind: type | tuple[type, ...] = object) -> Any:
    """What a JSON file holds. DataError also where that is no `kind`."""
    try:
        found = json.loads(text_of(path, what, remedy))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is no JSON ({error}). {remedy}") from error
    if not isinstance(found, kind):
        raise DataError(f"{what} {path} holds a {type(found).__name__}. {remedy}")
    return found


def pairs_of(path: Path, what: str, remedy: str, names: tuple[Names, Names]) -> list[tuple[str, str]]:
    """Two columns of a table: (first, second) of each row.

    The columns are those that the first row calls by one of `names`, in any order and among others; else the first row
    is data, and there must be two. A .tsv, or a table with tabs in its first line, is parted at tabs, any other at
    commas; quotes are as in CSV. DataError names the line that has no such columns.
    """
    lines = text_of(path, what, remedy).splitlines()
    first = next(line for line in lines if line.strip())
    rows = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" or "\t" in first else ",")
    columns, width, begun, found = (0, 1), 2, False, list[tuple[str, str]]()
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            lower = [cell.lower() for cell in cells]
            if not begun:
                begun = True
                places = [[place for place, cell in enumerate(lower) if cell in known] for known in names]
                if all(len(place) == 1 for place in places):
                    columns, width = (places[0][0], places[1][0]), len(cells)
                    continue
            if len(cells) != width or not all(cells[column] for column in columns):
                raise DataError(
                    f"{what} {path}: line {rows.line_num} is no {names[0][0]} and {names[1][0]} "
                    f"({len(cells)} columns, not {width}): {','.join(cells)[:80]!r}. {remedy}"
                )
            found.append((cells[columns[0]], cells[columns[1]]))
    except csv.Error as error:
        raise DataError(f"{what} {path}: line {rows.line_num}: {error}. {remedy}") from error
    if not found:
        raise DataError(f"{what} {path} names no image. {remedy}")
    return found
