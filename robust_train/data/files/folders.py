"""One rule for folders of images: what is a class, in which order, what is an image, what an image is called.

- A class is a folder below the one that is named, or a link to one, that no tool keeps for itself (`TOOLS`, and all
  whose names begin with a dot). Labels follow the order of `in_order`.
- An image is a file, at any depth below its class, whose name ends in one of `IMAGES`, in capitals or not, and is not
  hidden. Links are followed, each folder once. All else is passed over and said.
- Its key is its path from the folder on, without the ending, and with _ for dots in its own name: a key in a shard ends
  at its first dot. Where two images would have one key, the ending stays: cat/a_png beside cat/a_jpg.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robust_train.read.errors import DataError

IMAGES = (  # endings, the common ones first
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm", "jfif", "jpe", "avif"),
    *("jp2", "j2k", "jpf", "jpx", "j2c", "jpc", "apng", "dib", "tga", "pcx", "qoi", "sgi", "ras", "mpo"),
)
FORMATS = (  # Pillow's names of them: no other decoder is tried, whatever the bytes say (an .eps would start a program)
    *("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "DIB", "TGA", "PCX", "QOI", "SGI", "SUN"),
)
TOOLS = {
    *("__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "__pycache__", "cvs", "thumbs.db", "desktop.ini"),
}
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def hidden(name: str) -> bool:
    """Whether a file or folder is some tool's, and no picture or class."""
    return name.startswith(".") or name.lower() in TOOLS


def is_image(name: str) -> bool:
    """By its ending."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem and dot) and ending.lower() in IMAGES


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels.

    By value where all are whole numbers in digits (2 before 10, as in ImageNet-V2), else by the code points of their
    characters (Zebra before ant), as Python, torchvision and `LC_ALL=C sort` have it. The label is the place in it.
    """
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def class_folders(place: Path) -> list[str]:
    """The classes in a folder, in order.

    Raises DataError where there is none, where a name is no UTF-8 (another machine would read another name), and where
    all are splits of a data set.
    """
    names = [entry.name for entry in _entries(place) if not hidden(entry.name) and _is_folder(entry)]
    strange = next((name for name in names if not legible(name)), None)
    if strange is not None:
        raise DataError(
            f"{place}: the name of class folder {shown(strange)} is no UTF-8, so it is no name of a class. Rename it."
        )
    if not names:
        raise DataError(f"{place} holds no class folders. Name the folder that holds one folder a class.")
    if {name.lower() for name in names} <= SPLITS:
        raise DataError(
            f"{place} holds {' and '.join(in_order(names))}, which are parts of a data set and no classes. Name one of "
            f"them: {place / names[0]}"
        )
    return in_order(names)


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    files: its images, sorted by path, below `place`. passed: (name from the folder on, why) of what is none; doubtful:
    those of them that look like images, so that somebody may miss them.
    """

    place: Path
    files: tuple[Path, ...]
    passed: tuple[tuple[str, str], ...] = ()
    doubtful: tuple[tuple[str, str], ...] = ()

    def said(self) -> list[str]:
        """A line for each reason to pass something over: the first of its kind, and how many there are."""
        first: dict[str, str] = {}
        for name, why in (*self.doubtful, *self.passed):
            first.setdefault(why, name)
        counts = Counter(why for _, why in (*self.doubtful, *self.passed))
        return [
            f"{why}: {shown(name)}" + (f" ({counts[why]:,} in all)" if counts[why] > 1 else "")
            for why, name in first.items()
        ]

    def sure(self) -> Found:
        """Itself. DataError where something in it looks like an image and cannot be read: a figure would lack it."""
        if self.doubtful:
            name, why = self.doubtful[0]
            raise DataError(
                f"{self.place}: {shown(name)} is {why} ({len(self.doubtful):,} such in all). Mend it, or remove it: "
                "what is judged is all that lies there."
            )
        return self


def images_below(place: Path, folders: Sequence[str] | None = None) -> Found:
    """The images below a folder, at any depth; of some folders in it alone, where these are named."""
    files: list[Path] = []
    passed: list[tuple[str, str]] = []
    doubtful: list[tuple[str, str]] = []
    for path, why in _below(place, place, ()) if folders is None else _below_each(place, folders):
        if why is None:
            files.append(path)
        else:
            kept = doubtful if is_image(path.name) else passed
            kept.append((str(path.relative_to(place)), why))
    return Found(place, tuple(sorted(files)), tuple(sorted(passed)), tuple(sorted(doubtful)))


def keys_of(files: Sequence[Path], place: Path) -> list[str]:
    """What images are called in shards and lists. DataError where two would be called the same."""
    keys = [key_of(path.relative_to(place).as_posix()) for path in files]
    counts = Counter(keys)
    keys = [
        f"{key}_{path.suffix[1:].lower()}" if counts[key] > 1 else key for key, path in zip(keys, files, strict=True)
    ]
    places: dict[str, Path] = {}
    for key, path in zip(keys, files, strict=True):
        if key in places:
            raise DataError(f"{place}: {path} and {places[key]} would both be called {key} in a shard. Rename one.")
        places[key] = path
    return keys


def key_of(name: str) -> str:
    """The key of an image by its path: cat/a.b.png is cat/a_b."""
    folder, slash, file = name.rpartition("/")
    if is_image(file):
        file = file.rpartition(".")[0]
    return folder + slash + file.replace(".", "_")


def legible(name: str) -> bool:
    """Whether a file's name is UTF-8."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def shown(name: str) -> str:
    """A file's name as it can be printed: bytes that are no UTF-8 as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{shown(str(place))} is no folder of images. Correct the path.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round to itself
        return False


def _below_each(place: Path, folders: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    for name in folders:
        there = _below(place / name, place, ())
        count = 0
        for path, why in there:
            count += why is None
            yield path, why
        if not count:
            yield place / name, "a class without an image"


def _below(folder: Path, place: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, str | None]]:
    """(path, None) of each image, (path, why) of what is passed over. above: the real paths of the folders around."""
    real = os.path.realpath(folder)
    if real in above:
        yield folder, "a link to a folder that it lies in"
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if hidden(entry.name):
            continue
        if _is_folder(entry):
            if is_image(entry.name):
                yield path, "a folder that is called like an image"
            yield from _below(path, place, (*above, real))
        elif not legible(entry.name):
            yield path, "a name that is no UTF-8"
        elif not is_image(entry.name):
            ending = path.suffix.lower()
            yield path, f"no image that is read here ({ending or 'a name without an ending'})"
        elif not path.is_file():
            yield path, "a link to nothing" if entry.is_symlink() else "no file, but a device or a pipe"
        else:
            yield path, None
