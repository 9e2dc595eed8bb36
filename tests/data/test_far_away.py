"""Shards by http whose server fails: every wait ends, the true cause is said, and what has changed is fetched anew."""

from __future__ import annotations

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from numbered import CLASSES, SIZE

from robust_train import web
from robust_train.data import manifest
from robust_train.data.shards import Shards
from robust_train.read.errors import DataError


class Moody(SimpleHTTPRequestHandler):
    """A server whose answers a test may change: `mood` of a path, taken from the front, one a request."""

    moods: dict[str, list] = {}  # noqa: RUF012
    asked: list[tuple[str, str]] = []  # noqa: RUF012
    released = threading.Event()

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.asked.append(("HEAD", self.path))
        super().do_HEAD()

    def do_GET(self):
        self.asked.append(("GET", self.path))
        moods = self.moods.get(self.path, [])
        mood = moods.pop(0) if moods else None
        if isinstance(mood, int):
            self.send_error(mood)
        elif mood in ("half", "stall"):
            with open(self.translate_path(self.path), "rb") as file:
                whole = file.read()
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.wfile.flush()
            if mood == "stall":
                self.released.wait(20)
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "PAUSE", 0.01)
    monkeypatch.setattr(web, "PATIENCE", 2.0)
    web.stamp.cache_clear()
    manifest._manifest.cache_clear()
    manifest._entries.cache_clear()
    (tmp_path / "far").mkdir()
    Moody.moods.clear()
    Moody.asked.clear()
    Moody.released.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Moody, directory=str(tmp_path / "far"))) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        Moody.released.set()
        served.shutdown()
    web.stamp.cache_clear()
    manifest._manifest.cache_clear()
    manifest._entries.cache_clear()


def shards(url, tmp_path, **fields) -> Shards:
    web.stamp.cache_clear()  # as another process would
    manifest._manifest.cache_clear()
    manifest._entries.cache_clear()
    return Shards(url, classes=CLASSES, size=SIZE, channels=1, cache=str(tmp_path / "cache"), **fields)


@pytest.mark.parametrize("mood", ["half", "stall", 503])
def test_a_transfer_that_breaks_off_or_stalls_is_gone_on_with_and_said(server, write_shards, tmp_path, capsys, mood):
    local = write_shards(tmp_path / "far", [5])
    Moody.moods["/part-000.tar"] = [mood, mood]
    assert shards(f"{server}/part-000.tar", tmp_path).checksums() == shards(tuple(local), tmp_path).checksums()
    said = capsys.readouterr().err.splitlines()
    assert [f"at attempt {number} of 4" in line for number, line in enumerate(said, 1)] == [True, True]
    assert all(line.startswith(f"{server}/part-000.tar: ") for line in said)
    wanted = {"half": "the transfer ended after", "stall": "no byte for 2 s", 503: "HTTP 503"}[mood]
    assert all(wanted in line for line in said)


def test_one_that_never_comes_is_refused_with_the_address_the_attempt_and_the_cause(server, write_shards, tmp_path):
    write_shards(tmp_path / "far", [5])
    Moody.moods["/part-000.tar"] = [503] * 9
    with pytest.raises(DataError, match=r"part-000\.tar: HTTP 503 .*at attempt 4 of 4"):
        shards(f"{server}/part-000.tar", tmp_path).prepare()
    with pytest.raises(DataError, match=r"nothing\.tar: HTTP 404"):
        shards(f"{server}/nothing.tar", tmp_path).prepare()
    assert [path for _, path in Moody.asked].count("/nothing.tar") <= 2  # its HEAD and its GET: no further attempt


@pytest.mark.parametrize("reader", ["streams", "indexed"])
def test_a_manifest_that_cannot_be_had_is_told_by_its_true_cause(server, write_shards, tmp_path, reader):
    write_shards(tmp_path / "far", [5])
    Moody.moods["/manifest.json"] = [503] * 9
    with pytest.raises(DataError, match=r"manifest\.json: HTTP 503 .*at attempt 4 of 4"):
        shards(f"{server}/part-000.tar", tmp_path, reader=reader).prepare()


def test_a_shard_that_was_replaced_at_its_source_is_fetched_anew(server, write_shards, tmp_path):
    write_shards(tmp_path / "far", [5])
    before = shards(f"{server}/part-000.tar", tmp_path).known()
    assert shards(f"{server}/part-000.tar", tmp_path).known() == before
    assert [one for one in Moody.asked if one[1] == "/part-000.tar"] == [
        ("HEAD", "/part-000.tar"),
        ("GET", "/part-000.tar"),
        ("HEAD", "/part-000.tar"),
    ]
    write_shards(tmp_path / "far", [6])
    os.utime(tmp_path / "far" / "part-000.tar", (2**30, 2**30))
    after = shards(f"{server}/part-000.tar", tmp_path)
    assert after.train_size() == 6
    assert after.known() != before


def test_where_nobody_answers_what_was_fetched_is_used_and_that_is_said(
    server, write_shards, tmp_path, capsys, monkeypatch
):
    write_shards(tmp_path / "far", [5])
    before = shards(f"{server}/part-000.tar", tmp_path).known()
    monkeypatch.setattr(web, "urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("network is unreachable")))
    assert shards(f"{server}/part-000.tar", tmp_path).known() == before
    assert "does not answer: what was fetched of it before is used" in capsys.readouterr().err
