"""How a command line ends."""

from __future__ import annotations

import errno
import pickle

import pytest

from robust_train.read.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    RunError,
    main_guard,
    nearest,
)


@pytest.mark.parametrize("kind", [ConfigError, DataError, NumericsError, CheckpointError])
def test_a_run_error_is_its_message_on_stderr_and_exit_code_2(kind, capsys):
    with pytest.raises(SystemExit) as ended, main_guard():
        raise kind("eps=8 is not in [0, 1]; write 8/255")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "eps=8 is not in [0, 1]; write 8/255\n")
    assert issubclass(kind, RunError)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")],
)
def test_a_disk_that_cannot_be_written_is_named_with_the_remedy(number, words, capsys):
    with pytest.raises(SystemExit) as ended, main_guard():
        raise OSError(number, "as the system says it", "runs/demo/metrics.jsonl")
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("runs/demo/metrics.jsonl: ")
    assert words in err
    assert err.count("\n") == 1


def test_a_full_disk_without_a_path_names_the_working_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), main_guard():
        raise OSError(errno.ENOSPC, "as the system says it")
    assert str(tmp_path) in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(capsys):
    with pytest.raises(SystemExit) as ended, main_guard():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize("bug", [TypeError("a bug"), OSError(errno.EBADF, "a bug"), AssertionError("a bug")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as seen, main_guard():
        raise bug
    assert seen.value is bug


def test_the_guard_stands_over_a_main_and_passes_what_it_returns():
    @main_guard()
    def main(code: int) -> int:
        if code:
            raise DataError("no shards in data/")
        return 7

    assert main(0) == 7
    for _ in range(2):  # a guard is not used up
        with pytest.raises(SystemExit):
            main(1)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ConfigError("two\nlines")))
    assert type(error) is ConfigError
    assert str(error) == "two\nlines"


def test_the_nearest_name_is_offered_only_where_one_is_near():
    assert nearest("step_sise", ["steps", "step_size"]) == "; did you mean 'step_size'?"
    assert nearest("zebra", ["steps", "step_size"]) == ""
