"""What can go wrong with a run, and how a command line says it.

    RunError                one clear message, exit code 2: what, the value, where, the remedy
    ├── ConfigError         the run as it is written: a key, a type, a range, a name
    ├── DataError           shards, samples, labels, manifests
    ├── NumericsError       a loss or a gradient that is not finite
    ├── InputError          (a ConfigError) tensors or a network that no attack or evaluation can take
    ├── CheckpointError     a checkpoint that is damaged, half-written or another run's
    └── Terminated          SIGTERM; exit code 143

Bad input raises one of these, and `main_guard` catches it once. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and the like, which other libraries put into their messages


class RunError(Exception):
    """What stops a run and is no bug of ours. Its message is plain text, also where it quotes another library's."""

    def __init__(self, message: object = "") -> None:
        super().__init__(CODES.sub("", str(message)))


class ConfigError(RunError):
    """The run as it is written cannot be: a key, a type, a range, a name."""


class DataError(RunError):
    """Shards, samples, labels or manifests are not what they should be."""


class NumericsError(RunError):
    """A number that training needs is not finite."""


class CheckpointError(RunError):
    """A checkpoint is damaged, incomplete or belongs to something else."""


class InputError(ConfigError, ValueError):
    """Images, labels, logits or a network that an attack or an evaluation was given are not what it takes."""


class Terminated(RunError):
    """SIGTERM ended it: no fault, and the same command goes on. Exit code 143."""


TERMINATED = 143  # 128 + SIGTERM
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
REFUSED = 2

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some room or name another folder, then give the same command again",
    errno.EDQUOT: "your disk quota is used up; free some room or name another folder, then give the same command again",
    errno.EACCES: "no permission; change the rights of the folder, or name one that you may write to",
    errno.EPERM: "not permitted; change the rights of the folder, or name one that you may write to",
    errno.EROFS: "the file system is read-only; name a folder on one that can be written to",
}


@contextmanager
def main_guard() -> Iterator[None]:
    """Around a command line (`with main_guard():`, or `@main_guard()` over its main).

    RunError, and an OSError that the user can cure (full, forbidden, read-only): the message on stderr, exit code 2.
    Ctrl-C: one line, exit code 130. Everything else passes.
    """
    try:
        yield
    except RunError as error:
        print(error, file=sys.stderr)
        raise SystemExit(TERMINATED if isinstance(error, Terminated) else REFUSED) from None
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        # A write to an open file that fails names no path: the folder it ran in is the best that is known.
        place = error.filename or error.filename2 or f"a file being written (working folder {os.getcwd()})"
        print(f"{place}: {REMEDIES[error.errno]}", file=sys.stderr)
        raise SystemExit(REFUSED) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def nearest(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'step_size'?` where a known name is close to `name`, else nothing."""
    close = get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
