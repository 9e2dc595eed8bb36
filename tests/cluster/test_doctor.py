"""The doctor's lines: what is wrong on which node, and the remedy."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from robust_train.launch import doctor
from robust_train.launch.doctor import GIB, REMEDIES, Line, facts, judged

SOUND: dict[str, Any] = {
    "versions": dict.fromkeys(doctor.LIBRARIES, "1.0"),
    "gpus": 8, "gpu": "H200", "cuda": "13.0", "nccl": "2.28", "sees": True, "lacks": [],
    "free": 500 * GIB, "shm": 64 * GIB, "skew": 0.01, "doubt": 0.005,
}  # fmt: skip


def wrong(**change: Any) -> list[Line]:
    """The lines that are wrong where the second of two nodes differs so."""
    found = {"a (1)": SOUND, "b (2)": deepcopy(SOUND) | change}
    return [line for line in judged(found) if not line.good]


def test_two_sound_nodes_have_no_wrong_line() -> None:
    assert wrong() == []
    assert all(str(line).startswith("ok ") for line in judged({"a": SOUND}))


@pytest.mark.parametrize(
    ("change", "what", "seen"),
    [
        ({"versions": {**SOUND["versions"], "torch": "2.0"}}, "versions", "torch 1.0 on a (1); 2.0 on b (2)"),
        ({"versions": {**SOUND["versions"], "deepspeed": "absent"}}, "versions", "absent on b (2)"),
        ({"nccl": "2.20"}, "devices", "b (2): 8 x H200, CUDA 13.0, NCCL 2.20"),
        ({"gpus": 0}, "devices", "b (2): 0 x"),
        ({"sees": False}, "folder", "not seen by b (2)"),
        ({"lacks": ["/d/0.tar", "/d/9.tar"]}, "data", "b (2) does not see /d/0.tar and 1 more"),
        ({"free": 3 * GIB}, "disk", "b (2): 3 GiB free"),
        ({"shm": GIB // 16}, "shm", "b (2): 0.1 GiB"),
        ({"skew": -7.0}, "clocks", "b (2): -7.00 s from here"),
    ],
)
def test_what_differs_is_named_with_its_node_and_its_remedy(change: dict[str, Any], what: str, seen: str) -> None:
    (line,) = wrong(**change)
    assert line.what == what
    assert seen in line.seen
    assert REMEDIES[what] in str(line)


def test_a_package_that_is_absent_everywhere_is_wrong_too() -> None:
    none = deepcopy(SOUND) | {"versions": {**SOUND["versions"], "deepspeed": "absent"}}
    assert [line.what for line in judged({"a": none, "b": none}) if not line.good] == ["versions"]


def test_a_node_says_what_it_sees(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    here = facts(str(token), [str(token), str(tmp_path / "none.tar")])
    assert here["sees"]
    assert here["lacks"] == [str(tmp_path / "none.tar")]
    assert here["free"] > 0
    assert "absent" not in here["versions"].values()
    token.unlink()
    assert not facts(str(token), [])["sees"]


@pytest.mark.slow
@pytest.mark.cluster
def test_on_this_machine_two_processes_meet_and_add(tmp_path: Path) -> None:
    with doctor.joined(None):
        lines = doctor.examined(tmp_path, [])
    assert [line.what for line in lines if not line.good and line.what not in {"disk", "shm"}] == []
    assert lines[-1].what == "all-reduce"
    assert "64 MiB" in lines[-1].seen
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
