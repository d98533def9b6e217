"""Trains one network on sparse labels with several losses, and compares them.

Run as: python -m examples.sparse_labels --help
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.command import FILES, READ_SECONDS, obstacle
from tools.files import check_folder
from tools.program import Parser, insist, run

from .program import LOSSES, above_0, add, add_shared

# What is compared: "weighted" is BCE of ours at several pos_weights, "balanced" with those of
# pos_weight_from_labels and with their square roots.
COMPARED = (
    "plain",
    "categorical",
    "masked",
    "weighted",
    "balanced",
    *(name for name in LOSSES if name != "bce"),
)
# Also on demand: "gammas" is the focal and the asymmetric loss with other exponents.
CHOICES = (*COMPARED, "gammas")
PROGRAM = "python -m examples.sparse_labels"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "matplotlib", "psutil")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description=(
            "Predicts which modules a Python file imports from the names that it uses, or which "
            "tags a Debian package has from its description and its dependences, with plain BCE, "
            "categorical cross-entropy, the masked multiply, and weighted_bce at several "
            "pos_weights and with its other losses: each with a bias that starts at zero, and at "
            "the labels' frequencies. Prints tables, draws a picture, and says whether plain BCE "
            "collapses to zeros, whether weighting flips everything to ones, and what the start "
            "of the bias changes."
        ),
    )
    add_shared(parser, parser, parser, epochs=12)
    files = f"default: {FILES} files, or as many as {READ_SECONDS} seconds allow; all rows"
    add(parser, "--files", f"use at most N files, or rows of --data ({files})")
    seeds = "train each loss N times: --seed, --seed + 1 and so on choose split, start and order"
    add(parser, "--seeds", seeds, 1)
    add(parser, "--learning-rate", "of Adam", 0.02, type=above_0, metavar="X")
    compared = f"which are compared, of: {', '.join(CHOICES)} (default: all but gammas)"
    more: dict[str, Any] = {"nargs": "+", "choices": CHOICES, "metavar": "NAME"}
    add(parser, "--losses", compared, COMPARED, **more)
    out = "where sparse_labels.png, .svg and .json go (default: examples/out)"
    add(parser, "--out", out, Path(__file__).parent / "out", type=Path, metavar="DIR")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run(PROGRAM, lambda: _run(_parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    check_folder("--out", options.out)
    problem = obstacle(PACKAGES, options.reference)
    insist(not problem, problem)
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    from . import comparison

    comparison.run(options)


if __name__ == "__main__":
    sys.exit(main())
