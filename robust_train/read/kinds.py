"""What a file is by its first bytes, whatever it is called."""

from __future__ import annotations

BEGINNINGS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer: `git lfs pull` brings the file itself"),
    (b"\x1f\x8b", "gzip: unpack it, or call it .gz"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it (xz -d)"),
    (b"BZh", "a bzip2 archive: unpack it (bzip2 -d)"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it (zstd -d)"),
    (b"\x04\x22\x4d\x18", "an LZ4 archive: unpack it (lz4 -d)"),
    (b"\x5d\x00\x00", "an LZMA archive: unpack it (xz -d)"),
    (b"LZIP", "an lzip archive: unpack it (lzip -d)"),
    (b"\x1f\x9d", "a .Z archive: unpack it (uncompress)"),
    (b"PK\x03\x04", "a zip archive: unpack it (unzip)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it (7z x)"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it"),
    (b"PAR1", "a Parquet table: write its rows as files first"),
    (b"ARROW1", "an Arrow table: write its rows as files first"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite data base"),
    (b"%PDF", "a PDF"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
)
PAGES = ("<!doctype html", "<html", "<head", "<body")
PAGE = (
    "an HTML page: what was fetched is an answer in words, such as a log-in or an error. Open the address in a browser"
)
HEAD = 4096  # bytes that are looked at


def kind_of(head: bytes) -> str | None:
    """What a file that begins so is, and what to do about it; None where it is nothing that is known here."""
    for beginning, name in BEGINNINGS:
        if head.startswith(beginning):
            return name
    words = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:HEAD].decode("latin-1").lower()
    if words.startswith(PAGES):
        return PAGE
    if words.startswith("<?xml"):
        return (
            PAGE
            if "<html" in words
            else "an XML file, such as an error of a storage service: read it with a text editor"
        )
    if head and not any(head):
        return "a file of zeros: its place was made and its bytes were never written. Copy it again"
    return None
