"""The command line of extreme_labels."""

import argparse
import math

from tools.command import FILES, add_reference, positive, seed

EPOCHS = 5
COMPARED_STEPS = 5
MADE_UP_ROWS = 20_000
FEATURES = 20_000


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
    _add_data(made.add_argument_group("data"))
    _add_training(made.add_argument_group("training"))
    return made


def _add_data(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        metavar="FILE",
        help="a file in the extreme classification repository's format (a first line 'rows "
        "features labels'), or svmlight multilabel; may be .gz or .bz2. Or 'imports', the default: "
        "which modules the Python files of this environment import",
    )
    source.add_argument(
        "--labels", type=positive, metavar="N", help="instead, made-up data of so many labels"
    )
    add = group.add_argument
    add(
        "--test",
        metavar="FILE",
        help="the held-out rows of --data FILE (default: a fifth of its rows)",
    )
    add(
        "--rows",
        type=positive,
        metavar="N",
        help=f"how many made-up rows (default: {MADE_UP_ROWS}), or at most so many of --data "
        f"(default: {FILES} Python files, all of a file)",
    )
    add(
        "--features",
        type=positive,
        default=FEATURES,
        metavar="N",
        help="how many words made-up data have (default: %(default)s)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, metavar="N", help=f"default: {EPOCHS}")
    length.add_argument("--steps", type=positive, metavar="N", help="so many steps instead")
    add = group.add_argument
    number = {"type": positive, "metavar": "N"}
    add("--batch", default=128, help="rows of a step (default: %(default)s)", **number)
    add("--dim", default=128, help="in_features of the classifier (default: %(default)s)", **number)
    add("--buckets", default=2**15, help="words are hashed to so many (%(default)s)", **number)
    add(
        "--optimizer",
        choices=("adam", "sgd"),
        default="adam",
        help="of the classifier; the encoder has Adam (default: %(default)s)",
    )
    add(
        "--fused",
        action="store_true",
        help="update the classifier in the backward pass, so that its gradient is never held",
    )
    add(
        "--learning-rate",
        type=_above_0,
        metavar="X",
        help="of the classifier (default: 0.003 for adam, 1 for sgd)",
    )
    add(
        "--pos-weight",
        type=_pos_weight,
        default=1.0,
        metavar="X",
        help="a number, or 'propensity': 1 / propensity of each label (default: 1)",
    )
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
    add_reference(group)
    add(
        "--compare",
        action="store_true",
        help=f"take {COMPARED_STEPS} steps with nn.Linear, F.binary_cross_entropy_with_logits and "
        "a dense target as well",
    )


def _above_0(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def _pos_weight(text: str) -> float | str:
    if text == "propensity":
        return text
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number >= 0 or 'propensity', got {text!r}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
