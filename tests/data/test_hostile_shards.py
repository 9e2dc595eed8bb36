"""Shards that are none, or made to harm: an error that names the member, never a fault; odd ones that are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from itertools import islice

import numpy as np
import pytest
from numbered import CLASSES, SIZE, label_of, number_of, picture

from robust_train.data import index as indexing
from robust_train.data.files import tar as tars
from robust_train.data.manifest import locate
from robust_train.data.shards import Shards
from robust_train.disk import checksum, write_json
from robust_train.nouns import Extra, Place
from robust_train.read.errors import DataError

READERS = [{"reader": "indexed"}, {"reader": "streams", "streams": 1, "window": 4}]


def member(name: str, content: bytes = b"", **said) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in said.items():
        setattr(info, field, value)
    return info, content


def samples(count: int = 3, first: int = 0):
    for n in range(first, first + count):
        yield member(f"s{n}.png", picture(n))
        yield member(f"s{n}.cls", str(label_of(n)).encode())


def tar(members, form=tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def shards(folder, content: bytes, name: str = "part.tar", count: int = 3, **fields) -> Shards:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    if fields.get("reader") == "streams":
        entry = {"file": name, "samples": count, "bytes": len(content), "sha256": checksum(folder / name)}
        write_json(folder / "manifest.json", {"splits": {"train": {"samples": count, "shards": [entry]}}})
    fixed = {"classes": CLASSES, "size": SIZE, "channels": 1, "cache": str(folder / "cache")}
    return Shards(str(folder / name), **fixed, **fields)


def shown(data: Shards, batch: int = 3) -> set[int]:
    """What a job does before and while it trains, and the samples that it saw."""
    data.prepare()
    data.check()
    (found,) = islice(data.batches(Place(), batch, 0, 0), 1)
    assert found.targets.tolist() == [label_of(n) for n in number_of(found.images)]
    return set(number_of(found.images))


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (member("../../etc/passwd.png", b"x"), r"'../../etc/passwd.png' is a path that leads out of the archive"),
        (member("/etc/passwd.png", b"x"), r"'/etc/passwd.png' is a path that leads out"),
        (member("a/../../b.png", b"x"), r"'a/../../b.png' is a path that leads out"),
        (member("s9.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), r"'s9.png' is a symbolic link, and nothing"),
        (member("s9.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5), r"'s9.png' is a device"),
        (member("s9.png", type=tarfile.BLKTYPE), r"'s9.png' is a device"),
        (member("s9.png", type=tarfile.FIFOTYPE), r"'s9.png' is a pipe"),
        (member("s9.png", type=b"S"), r"'s9.png' is a sparse file"),
        (member("s9.png", type=tarfile.LNKTYPE, linkname="/etc/passwd"), r"'s9.png' is a link to '/etc/passwd', wh"),
    ],
)
def test_members_that_reach_out_are_named(tmp_path, fields, bad, said):
    content = tar([*samples(2), bad, *samples(1, 2)])
    with pytest.raises(DataError, match=rf"shard part\.tar: member {said}.*Write the shard anew|{said}"):
        shown(shards(tmp_path, content, **fields))


def with_size(kind: bytes, size: int, after: bytes = b"") -> bytes:
    """An archive of one sample, then a header that says a size of its own."""
    info = tarfile.TarInfo("s9.png")
    info.type, info.size = kind, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    return tar(samples(1))[: 4 * 512] + header + after


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (with_size(b"x", 1 << 30), "has a header of 1,073,741,824 bytes, which is no name"),
        (with_size(b"g", 1 << 40), "has a header of 1,099,511,627,776 bytes"),
        (with_size(b"L", 5 << 30), "has a header of 5,368,709,120 bytes"),
        (with_size(b"0", 1 << 62), "has 4,611,686,018,427,387,904 bytes, which is no image"),
        (with_size(b"5", 1 << 20), "truncated or damaged"),
        (with_size(b"A", (1 << 62)), "truncated or damaged"),
        (with_size(b"0", 600, b"x" * 300), "truncated or damaged"),
        (with_size(b"x", 512, b"99999999 path=x\n".ljust(512, b"\0")), "an extended header is damaged"),
        (with_size(b"x", 512, b"11 size=-5\n".ljust(512, b"\0") + tar(samples(1))), "'s0.png' says no size"),
        (tar(samples(1))[: 4 * 512] + b"garbage!" * 64, "what follows is no header of a tar archive"),
        (tar(samples(3)) + b"garbage!" * 64, "what follows is no header of a tar archive"),
    ],
)
def test_headers_that_say_gigabytes_or_nonsense_are_named(tmp_path, fields, content, said):
    with pytest.raises(DataError, match=rf"shard part\.tar.*{said}"):
        shown(shards(tmp_path, content, **fields), 1)


def test_a_negative_size_ends_no_loop(tmp_path):
    """tarfile once went round for ever: CVE-2025-8194."""
    content = bytearray(tar(samples(1)))
    content[124:136] = b"\xff" * 12  # -1 in binary
    total = sum(content[:148]) + sum(content[156:512]) + 256
    content[148:156] = b"%06o\0 " % total
    with pytest.raises(DataError, match="says no size"):
        shards(tmp_path, bytes(content)).prepare()


def test_a_packed_shard_that_grows_without_end_is_stopped(tmp_path, monkeypatch):
    """One that fills a disk from a few kilobytes; the bound is 1 GiB, less here."""
    monkeypatch.setattr(indexing, "LARGE", 1 << 20)
    info, _ = member("s0.png")
    info.size = 1 << 24
    content = gzip.compress(info.tobuf() + bytes(info.size + 1024))
    with pytest.raises(DataError, match=r"shard part\.tar\.gz grows more than 200 times when it is unpacked"):
        shards(tmp_path, content, "part.tar.gz").prepare()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert len(shown(shards(tmp_path / "sound", gzip.compress(tar(samples())), "part.tar.gz"))) == 3


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
def test_an_image_of_too_many_pixels_is_a_broken_sample(tmp_path, fields):
    content = tar([*samples(2), member("s2.png", bomb(60_000, 60_000)), member("s2.cls", b"6")])
    with pytest.raises(DataError, match=r"sample s2 cannot be decoded \(DecompressionBombError"):
        shown(shards(tmp_path, content, **fields))


def test_a_table_that_says_gigabytes_is_a_broken_sample(tmp_path):
    """Before so much memory is asked for."""
    large, small = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(large, {"shape": (1 << 40,), "fortran_order": False, "descr": "<f4"})
    np.save(small, np.ones(3, np.float32))
    tables = [small.getvalue(), small.getvalue(), large.getvalue()]
    members = [one for n in range(3) for one in (*samples(1, n), member(f"s{n}.resp.npy", tables[n]))]
    data = shards(tmp_path, tar(members), extra={"resp": Extra((3,))})
    with pytest.raises(DataError, match=r"has a .resp.npy that holds float32 \[1099511627776\], not numbers \[3\]"):
        shown(data)


@pytest.mark.parametrize("label", [b"9" * 5000, b"9" * 30, b"[" * 100_000, b"\xff\xfe1"])
def test_a_label_that_no_number_holds_is_a_broken_sample(tmp_path, label):
    kind = "json" if label.startswith(b"[") else "cls"
    content = tar([*samples(2), member("s2.png", picture(2)), member(f"s2.{kind}", label)])
    with pytest.raises(DataError, match="sample s2 has a label that is no integer"):
        shown(shards(tmp_path, content))


def test_a_label_of_megabytes_is_refused(tmp_path):
    content = tar([*samples(2), member("s2.png", picture(2)), member("s2.cls", b"1" * ((1 << 20) + 1))])
    with pytest.raises(DataError, match=r"s2\.cls has 1,048,577 bytes, which is no label"):
        shown(shards(tmp_path, content))


# -- what is no tar ---------------------------------------------------------------------------------


def zipped(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("s0.png", content)
    return out.getvalue()


NONE = {
    "Git LFS pointer: `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n",
    "HTML page": b"\n<!DOCTYPE html><html>" + b"x" * 5000,
    "HTML page: ": b"<html><body>404</body></html>",
    "XML file": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "zip archive": zipped(b"x" * 600),
    "xz archive": lzma.compress(tar(samples())),
    "bzip2 archive": bz2.compress(tar(samples())),
    "zstd archive": b"\x28\xb5\x2f\xfd" + b"x" * 600,
    "NumPy array": b"\x93NUMPY\x01\x00" + b"x" * 600,
    "Parquet table": b"PAR1" + b"x" * 600,
    "JPEG image": b"\xff\xd8\xff\xe0" + b"x" * 600,
}


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", NONE)
def test_an_archive_that_is_none_is_named_as_what_it_is(tmp_path, fields, packed, kind):
    """Not as truncated: to copy it again would bring the same file. Packed once more, too."""
    content = gzip.compress(NONE[kind]) if packed else NONE[kind]
    with pytest.raises(DataError, match=rf"^shard part\.tar is no tar archive but an? {kind}"):
        shown(shards(tmp_path, content, **fields))


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize(("name", "packed"), [("part.tar", True), ("part.tar.gz", False), ("part.tgz", True)])
def test_packed_or_not_is_seen_by_the_bytes(tmp_path, fields, name, packed):
    content = tar(samples())
    assert shown(shards(tmp_path, gzip.compress(content) if packed else content, name, **fields)) == {0, 1, 2}


# -- what is odd and read ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(tmp_path, fields, form):
    """Long names, in the one way that each form has; folders; names beyond ASCII."""
    deep = "/".join(["deep"] * 24)

    def members():
        yield member(deep, type=tarfile.DIRTYPE)
        for n, name in enumerate([f"{deep}/s0", "café", "s" * (90 if form == tarfile.USTAR_FORMAT else 300)]):
            yield member(f"{name}.png", picture(n))
            yield member(f"{name}.cls", str(label_of(n)).encode())

    assert shown(shards(tmp_path, tar(members(), form), **fields)) == {0, 1, 2}


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
def test_joined_archives_are_read_to_the_last(tmp_path, fields):
    """As `cat a.tar b.tar` makes them: an end mark stands in the middle."""
    content = tar(samples(2)) + tar(samples(3, 2))
    assert shown(shards(tmp_path, content, count=5, **fields), 5) == {0, 1, 2, 3, 4}
    joined = gzip.compress(tar(samples(2))) + gzip.compress(tar(samples(3, 2)))
    assert shown(shards(tmp_path / "gz", joined, "part.tar.gz", count=5, **fields), 5) == {0, 1, 2, 3, 4}


def test_a_hard_link_stands_for_the_bytes_of_its_name(tmp_path):
    """As tar writes two names of one file; a stream, where they are gone, says so."""
    members = [*samples(1), member("t0.png", type=tarfile.LNKTYPE, linkname="s0.png"), member("t0.cls", b"0")]
    data = shards(tmp_path, tar(members))
    data.prepare()
    batch = next(data.batches(Place(), 2, 0, 0))
    assert (number_of(batch.images), batch.targets.tolist()) == ([0, 0], [0, 0])
    with pytest.raises(DataError, match=r"'t0.png' is a link to 's0.png', whose bytes are gone .*data.reader=indexed"):
        shown(shards(tmp_path / "far", tar(members), count=2, **READERS[1]), 2)


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    content = tar(samples()).replace(b"s1.png", b"\xe91.png").replace(b"s1.cls", b"\xe91.cls")
    fixed = bytearray(content)
    for at in range(0, len(fixed), 512):
        if fixed[at : at + 1] == b"\xe9":
            total = sum(fixed[at : at + 148]) + sum(fixed[at + 156 : at + 512]) + 256
            fixed[at + 148 : at + 156] = b"%06o\0 " % total
    data = shards(tmp_path, bytes(fixed))
    data.prepare()
    assert list(data._train.keys()) == ["s0", "\\xe91", "s2"]


@pytest.mark.parametrize("fields", READERS, ids=lambda fields: fields["reader"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("img.v1.0.png", "img.v1.0.cls"), r"sample img has no image, but a file img\.v1\.0\.png is there"),
        (("img.png", "img.v1.cls"), r"sample img has no label, but a file img\.v1\.cls is there"),
    ],
)
def test_names_with_several_dots_are_named_with_the_rule(tmp_path, fields, names, said):
    content = tar([*samples(1), member(names[0], picture(1)), member(names[1], b"3")])
    with pytest.raises(DataError, match=rf"{said}. A key ends at the first dot of a file's name"):
        shown(shards(tmp_path, content, count=2, **fields), 2)


def test_a_second_image_under_a_longer_name_is_no_fault(tmp_path):
    """KEY.seg.png beside KEY.png, as many sets have it."""
    members = []
    for info, content in samples():
        members.append((info, content))
        if info.name.endswith("png"):
            members.append(member(info.name[:2] + ".seg.png", picture(9)))
    assert shown(shards(tmp_path, tar(members))) == {0, 1, 2}


@pytest.mark.parametrize("folder", ["[2024] set", "a{b,c}", "what?", "*", "a[b]{c}"])
def test_folders_whose_names_are_patterns_are_found(tmp_path, folder):
    shards(tmp_path / folder, tar(samples()), "val-0.tar")
    shards(tmp_path / folder, tar(samples()), "val-1.tar")
    both = tuple(str(tmp_path / folder / f"val-{n}.tar") for n in (0, 1))
    for url in ("val-*.tar", "val-{0..1}.tar", "", "val-[01].tar"):
        assert locate(str(tmp_path / folder / url)) == both, url
    assert locate(both[1]) == both[1:]


def test_reading_is_as_fast_as_before(tmp_path):
    """One seek and one read a member, and nothing of an image: bytes read are headers, labels, one more a member."""
    reads = []

    class Counted(io.BytesIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    content = tar([member("s0.png", bytes(1 << 20)), member("s0.cls", b"1")])
    assert [one.name for one in tars.Reader(Counted(content), "x", True)] == ["s0.png", "s0.cls"]
    assert sum(reads) < 20 * 512 + 10240
