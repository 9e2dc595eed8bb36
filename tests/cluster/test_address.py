"""Which cluster an address means; a wrong one is refused at once, and Ray is not even imported for it."""

from __future__ import annotations

import os
import socket
import time

import pytest

from robust_train.launch.address import address_of
from robust_train.read.errors import ConfigError


@pytest.fixture
def head():
    """A port that takes connections."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("said", ["", "  ", "local"])
def test_an_empty_address_is_none(monkeypatch, said):
    monkeypatch.setenv("RAY_ADDRESS", said)
    assert address_of(None) is None
    assert "RAY_ADDRESS" not in os.environ  # Ray would read it again


def test_what_is_said_goes_before_what_stands_around(monkeypatch, head):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    assert address_of("auto") == "auto"
    assert address_of(head) == head
    monkeypatch.setenv("RAY_ADDRESS", f" {head} ")
    assert address_of(None) == head


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("http://127.0.0.1:8265", "launch.submit --address http://127.0.0.1:8265"),
        ("https://ray.example/", "launch.submit"),
        ("ray://127.0.0.1:10001", "launch.submit"),
        ("127.0.0.1", "HOST:PORT"),
        ("127.0.0.1:port", "HOST:PORT"),
        ("127.0.0.1:99999", "HOST:PORT"),
        (":6379", "HOST:PORT"),
        ("tcp://127.0.0.1:6379", "HOST:PORT"),
        ("no-such-host.invalid:6379", "ray start"),
        ("127.0.0.1:9", "ray start"),
        ("[::1]:9", "ray start"),
    ],
)
def test_what_no_cluster_answers_is_refused_at_once(monkeypatch, said, remedy):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=remedy.replace("[", "[[]")):
        address_of(said)
    monkeypatch.setenv("RAY_ADDRESS", said)
    with pytest.raises(ConfigError, match="RAY_ADDRESS="):
        address_of(None)
    assert time.monotonic() - began < 12
