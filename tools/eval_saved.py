"""Adversarial images that were saved for this or another network, checked and judged again in place of an attack."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from robust_train.read.errors import main_guard
from robust_train.tools import eval_attack, shared

if TYPE_CHECKING:
    from robust_train.evaluate.robustness import Robustness
    from robust_train.nouns import Dataset

EPILOG = f"""examples
  python -m tools.eval attack runs/demo --attack autoattack --save-adversarial set.pth
      makes such a file
  python -m tools.eval saved runs/other --adversarial set.pth --eps 0.1
      another network on these images
  python -m tools.eval saved --model resnet50 --weights r50.pth --data 'val-*.tar' --eps 4/255 --adversarial set.pth

what is checked
  There is one point for each image that is judged, of its shape, finite, in [0, 1] and within eps of it; where
  FILE.json lies beside the file, it is of these very images. What is not so is refused, and the first of them named. An
  image counts as robust that is right when clean and at its point: an upper bound, and the looser the less the network
  is like the one that the points were made for.

{shared.GOES_ON}"""


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = shared.parser("eval saved", __doc__, EPILOG)
    shared.of_network(parser.add_argument_group("what is judged"))
    where = parser.add_argument_group("on which images")
    told = "torch.save({'adv_complete': points}, FILE), as AutoAttack and --save-adversarial write it"
    where.add_argument("--adversarial", metavar="FILE", required=True, help=told)
    shared.of_images(where)
    how = parser.add_argument_group("allowed how far")
    eval_attack.of_threats(how, several=False)
    how.add_argument("--seed", type=int, default=0, help="of everything drawn (%(default)s)")
    out = parser.add_argument_group("where and whither")
    shared.of_devices(out)
    eval_attack.of_page(out)
    found = parser.parse_args(words)
    shared.check(parser, found, "data", "eps")
    eval_attack.check_threats(parser, found)
    return found


@main_guard()
def main(words: list[str]) -> None:
    """Judge, show, and write the report and the pictures."""
    from robust_train.evaluate.adversarial_sets import replayed
    from robust_train.evaluate.robustness import Robustness

    asked = arguments(words)
    subject = shared.subject_of(asked)
    threats = eval_attack.threats_of(asked, subject)

    def on(data: Dataset) -> Robustness:
        return replayed(Robustness(threats, images=asked.images, chunk=asked.chunk), asked.adversarial, data)

    eval_attack.judge(asked, subject, on, ["saved", *words])
