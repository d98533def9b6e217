"""Trains one network on sparse labels with several losses, and compares them.

Run as: python -m examples.sparse_labels --help
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.command import FILES, READ_SECONDS, add_reference, obstacle, positive, seed

from .program import FORMATS, insist, run

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "matplotlib")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.sparse_labels",
        description=(
            "Predicts which modules a Python file imports from the names that it uses, on the "
            "files of this environment, with plain BCE, categorical cross-entropy, the masked "
            "multiply and weighted_bce at several pos_weights. Prints a table, draws a picture, "
            "and says whether plain BCE collapses to zeros and whether weighting flips everything "
            "to ones."
        ),
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help=f"use {FORMATS}",
    )
    add(
        "--files",
        type=positive,
        metavar="N",
        help=f"use at most N files, or rows of --data (default: {FILES} files, or as many as "
        f"{READ_SECONDS} seconds allow; all rows)",
    )
    add("--epochs", type=positive, default=10, metavar="N", help="default: %(default)s")
    add("--seed", type=seed, default=0, metavar="N", help="of every choice (default: %(default)s)")
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "out",
        metavar="DIR",
        help="where sparse_labels.png, .svg and .json go (default: examples/out)",
    )
    add_reference(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return run("sparse_labels", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    insist(obstacle(PACKAGES, options.reference))
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    from . import comparison

    comparison.run(options)


if __name__ == "__main__":
    sys.exit(main())
