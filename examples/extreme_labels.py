"""Trains a classifier of very many labels without holding its logits, and ranks with it.

Run as: python -m examples.extreme_labels --help
"""

import argparse
import math
import sys
from collections.abc import Sequence

from tools.command import FILES, checked, obstacle
from tools.program import Parser, insist, run

from .program import DEBIAN, IMPORTS, LOSSES, above_0, add, add_shared

PROGRAM = "python -m examples.extreme_labels"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "psutil")
COMPARED_STEPS, MADE_UP_ROWS = 5, 20_000

_exponent = checked(float, lambda number: 0 < number <= 10, "a number above 0 and up to 10")
_pos_weight = checked(
    lambda text: text if text == "propensity" else float(text),
    lambda value: value == "propensity" or 0 <= float(value) < math.inf,
    "a number >= 0 or 'propensity'",
)


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog=PROGRAM,
        description=(
            "Trains a hashed bag of words and LinearMultilabelLoss on sparse labels, then prints "
            "what a step costs and how well held-out rows are ranked: precision, nDCG and "
            "propensity-scored precision at 1, 3 and 5. Neither the logits nor a dense target are "
            "ever held."
        ),
    )
    data = made.add_argument_group("data")
    training = made.add_argument_group("training")
    source, length = (group.add_mutually_exclusive_group() for group in (data, training))
    add_shared(training, source, length, epochs=5)
    add(source, "--labels", "instead, made-up data of so many labels")
    held_out = "the held-out rows of --data FILE (default: a fifth of its rows)"
    add(data, "--test", held_out, type=str, metavar="FILE")
    rows = f"how many made-up rows (default: {MADE_UP_ROWS}), or at most so many of --data"
    add(data, "--rows", f"{rows} (default: {FILES} Python files, all of a file)")
    add(data, "--features", "how many words made-up data have", 20_000)
    add(length, "--steps", "so many steps instead of epochs")
    add(training, "--batch", "rows of a step", 128)
    add(training, "--dim", "in_features of the classifier", 128)
    add(training, "--buckets", "words are hashed to so many", 2**15)
    of_classifier, names = "of the classifier; the encoder has Adam", ("adam", "sgd")
    add(training, "--optimizer", of_classifier, "adam", choices=names)
    fused = "update the classifier chunk by chunk, so that its gradient is never held"
    training.add_argument("--fused", action="store_true", help=fused)
    rate = "of the classifier (default: 0.003 for adam, 1 for sgd)"
    add(training, "--learning-rate", rate, type=above_0, metavar="X")
    add(training, "--loss", "with its default parameters", "bce", choices=tuple(LOSSES))
    weight = "a number, or 'propensity': 1 / propensity of each label"
    add(training, "--pos-weight", weight, 1.0, type=_pos_weight, metavar="X")
    text = "of the propensities (default: 0.55 1.5; Amazon's are 0.6 2.6, Wikipedia's 0.5 0.4)"
    add(training, "--propensity", text, (0.55, 1.5), nargs=2, type=_exponent, metavar=("A", "B"))
    add(training, "--chunk-labels", "labels computed at once (default: chosen)")
    add(training, "--device", "of the training", "cpu", choices=("cpu", "cuda"))
    compare = (
        f"take {COMPARED_STEPS} steps with nn.Linear, F.binary_cross_entropy_with_logits and a "
        "dense target as well; with --loss bce only"
    )
    training.add_argument("--compare", action="store_true", help=compare)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    return run(PROGRAM, lambda: _run(parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    insist(not options.test or options.data not in (IMPORTS, DEBIAN), "--test needs --data FILE")
    problem = obstacle(PACKAGES, reference=True)
    insist(not problem, problem)
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    from . import extreme_training

    extreme_training.run(options)


if __name__ == "__main__":
    sys.exit(main())
