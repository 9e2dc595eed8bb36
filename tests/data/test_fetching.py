"""Shards that lie elsewhere: fetched once, checked, and read as local ones are."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import ClassVar

import pytest
import torch
from numbered import CLASSES, SIZE, number_of

from robust_train.data.shards import Shards
from robust_train.nouns import Place
from robust_train.read.errors import DataError


class Quiet(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/far; gives its address."""
    (tmp_path / "far").mkdir()
    Quiet.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "far"))) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def shards(urls, tmp_path, **fields) -> Shards:
    return Shards(urls, classes=CLASSES, size=SIZE, channels=1, cache=str(tmp_path / "cache"), **fields)


def test_remote_shards_are_fetched_once(server, write_shards, tmp_path):
    local = write_shards(tmp_path / "far", [5, 6, 7], [".tar", ".tar", ".tar.gz"])
    urls = (f"{server}/part-00{{0,1}}.tar", f"{server}/part-002.tar.gz")
    for _ in range(2):
        near, far = shards(tuple(local), tmp_path), shards(urls, tmp_path)
        for a, b in islice(zip(near.batches(Place(), 6, 0, 0), far.batches(Place(), 6, 0, 0), strict=False), 4):
            assert torch.equal(a.images, b.images)
        assert near.checksums() == far.checksums()
    assert sorted(path for path in Quiet.asked if "part" in path) == [
        "/part-000.tar",
        "/part-001.tar",
        "/part-002.tar.gz",
    ]


def test_streams_read_remote_shards_without_keeping_them(server, write_shards, tmp_path):
    local = write_shards(tmp_path / "far", [5, 6, 7, 8], ".tar.gz")
    streamed = {"reader": "streams", "streams": 2, "window": 3}
    near = shards(tuple(local), tmp_path, **streamed).batches(Place(), 4, 0, 0)
    far = shards(f"{server}/part-{{000..003}}.tar.gz", tmp_path, **streamed).batches(Place(), 4, 0, 0)
    for a, b in islice(zip(near, far, strict=False), 8):
        assert torch.equal(a.images, b.images)
        assert number_of(b.images) == b.sample.tolist()
    near.close()
    far.close()
    assert not (tmp_path / "cache").exists()


def test_a_remote_shard_that_its_manifest_does_not_describe_is_refused(server, write_shards, tmp_path):
    write_shards(tmp_path / "far", [5])
    path = tmp_path / "far" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"shard part-000.tar has sha256 .* but manifest.json beside it says 0{12}"):
        shards(f"{server}/part-000.tar", tmp_path).prepare()
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix in (".tar", ".npy", ".json", ".partial")]


def test_a_remote_shard_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(DataError, match=r"shard none.tar: http.*/none.tar could not be read"):
        shards(f"{server}/none.tar", tmp_path).prepare()


def test_a_replaced_shard_is_indexed_anew(write_shards, tmp_path):
    urls = write_shards(tmp_path, [5], manifest=False)
    assert shards(urls[0], tmp_path).train_size() == 5
    write_shards(tmp_path, [9], manifest=False)
    assert shards(urls[0], tmp_path).train_size() == 9


def test_a_cache_that_was_emptied_is_filled_again(write_shards, tmp_path):
    urls = write_shards(tmp_path, [5], ".tar.gz")
    shards(urls[0], tmp_path).prepare()
    next((tmp_path / "cache").glob("*.tar")).unlink()
    assert number_of(next(shards(urls[0], tmp_path).batches(Place(), 5, 0, 0)).images)
