"""`python -m tests.mutants [WORD ...]`: every mutation must fail a test. A table; exit code 1 where one does not."""

from __future__ import annotations

import argparse
import sys

import torch

from robust_train.vision import ensure_torchvision_importable
from tests.mutants.tried import PASSED, copied, listed, outcome, ran


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name or file has one of these words")
    mutants = listed(parser.parse_args(words).words)
    if not mutants:
        parser.error("no mutant has such a name or file")
    ensure_torchvision_importable()
    import timm  # noqa: F401  # before the forks, which then need not

    torch.set_num_threads(1)  # a fork would lose the threads of its parent
    survived = 0
    with copied() as copy:
        tests = dict.fromkeys(test for mutant in mutants for test in mutant.test.split())
        code, said = ran(copy, " ".join(tests), limit=3600)
        if code != PASSED:
            print(f"{said}\nThese tests fail without any mutation: mend them first.", file=sys.stderr)
            return 2
        for mutant in mutants:
            found = outcome(copy, mutant)
            survived += not found.caught
            verdict = "caught  " if found.caught else "SURVIVED"
            print(f"{verdict} {found.seconds:5.1f} s  {mutant.file:28} {mutant.what}: {found.why}", flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
