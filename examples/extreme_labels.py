"""Trains a classifier of very many labels without holding its logits, and ranks with it.

Run as: python -m examples.extreme_labels --help
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence

from tools.command import FILES, add_reference, obstacle, positive, seed

from .program import FORMATS, insist, run

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "psutil")
COMPARED_STEPS, MADE_UP_ROWS = 5, 20_000


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m examples.extreme_labels",
        description=(
            "Trains a hashed bag of words and LinearWeightedBCEWithLogitsLoss on sparse labels, "
            "then prints what a step costs and how well held-out rows are ranked: precision, nDCG "
            "and propensity-scored precision at 1, 3 and 5. Neither the logits nor a dense target "
            "are ever held."
        ),
    )
    number = {"type": positive, "metavar": "N"}
    data = made.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    imports = "Or 'imports', the default: which modules the Python files of this environment import"
    source.add_argument("--data", metavar="FILE", help=f"{FORMATS}. {imports}")
    source.add_argument("--labels", help="instead, made-up data of so many labels", **number)
    rows = (
        f"how many made-up rows (default: {MADE_UP_ROWS}), or at most so many of --data (default: "
    )
    held_out = "the held-out rows of --data FILE (default: a fifth of its rows)"
    data.add_argument("--test", metavar="FILE", help=held_out)
    data.add_argument("--rows", help=f"{rows}{FILES} Python files, all of a file)", **number)
    words = "how many words made-up data have (default: %(default)s)"
    data.add_argument("--features", default=20_000, help=words, **number)

    training = made.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--epochs", default=5, help="default: %(default)s", **number)
    length.add_argument("--steps", help="so many steps instead", **number)
    add = training.add_argument
    add("--batch", default=128, help="rows of a step (default: %(default)s)", **number)
    add("--dim", default=128, help="in_features of the classifier (default: %(default)s)", **number)
    add("--buckets", default=2**15, help="words are hashed to so many (%(default)s)", **number)
    add(
        "--optimizer",
        choices=("adam", "sgd"),
        default="adam",
        help="of the classifier; the encoder has Adam (default: %(default)s)",
    )
    fused = "update the classifier in the backward pass, so that its gradient is never held"
    add("--fused", action="store_true", help=fused)
    rate = "of the classifier (default: 0.003 for adam, 1 for sgd)"
    add("--learning-rate", type=_above_0, metavar="X", help=rate)
    weight = "a number, or 'propensity': 1 / propensity of each label (default: 1)"
    add("--pos-weight", type=_pos_weight, default=1.0, metavar="X", help=weight)
    add(
        "--propensity",
        nargs=2,
        type=_above_0,
        default=(0.55, 1.5),
        metavar=("A", "B"),
        help="of the propensities (default: 0.55 1.5; Amazon's are 0.6 2.6, Wikipedia's 0.5 0.4)",
    )
    add("--chunk-labels", help="labels computed at once (default: chosen)", **number)
    add("--seed", type=seed, default=0, metavar="N", help="of every choice (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add_reference(training)
    compare = (
        f"take {COMPARED_STEPS} steps with nn.Linear, F.binary_cross_entropy_with_logits and a "
        "dense target as well"
    )
    add("--compare", action="store_true", help=compare)
    return made


def _number(text: str, allowed: Callable[[float], bool], name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (allowed(number) and number < math.inf):
        raise argparse.ArgumentTypeError(f"must be a number {name}, got {text!r}")
    return number


def _above_0(text: str) -> float:
    return _number(text, lambda number: number > 0, "above 0")


def _pos_weight(text: str) -> float | str:
    if text == "propensity":
        return text
    return _number(text, lambda number: number >= 0, ">= 0 or 'propensity'")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run("extreme_labels", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    insist("--test needs --data FILE" if options.test and options.data in (None, "imports") else "")
    insist(obstacle(PACKAGES, reference=True))
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    from . import extreme_training

    extreme_training.run(options)


if __name__ == "__main__":
    sys.exit(main())
