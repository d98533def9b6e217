"""Trains one network on sparse labels with several losses, and compares them.

Run as: python -m examples.sparse_labels --help
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command import (
    FILES,
    READ_SECONDS,
    add_reference,
    obstacle,
    positive,
    progress_on,
    seed,
)

if TYPE_CHECKING:
    from rich.console import Console

    from .imports_data import Dataset
    from .report import Result, Shape

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "matplotlib")
EPOCHS = 10
COST_ROWS = 1024
# Logits of the measured step: with very many labels it has fewer rows.
COST_ELEMENTS = 2**26


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.sparse_labels",
        description=(
            "Learns which modules a Python file imports from the names that it uses, on the files "
            "of this environment, with plain BCE, categorical cross-entropy, the masked multiply "
            "and weighted_bce at several pos_weights. Prints a table, draws a picture, and says "
            "whether plain BCE collapses to zeros and whether weighting flips everything to ones."
        ),
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="use this file instead: svmlight multilabel, or the extreme classification "
        "repository's format (a first line 'rows features labels'); may be .gz or .bz2",
    )
    add(
        "--files",
        type=positive,
        metavar="N",
        help=f"use at most N files, or rows of --data (default: {FILES} files, or as many as "
        f"{READ_SECONDS} seconds allow; all rows)",
    )
    add("--epochs", type=positive, default=EPOCHS, metavar="N", help="default: %(default)s")
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
    try:
        why_not = obstacle(PACKAGES, options.reference)
        if why_not:
            return _fail(f"error: {why_not}", 2)
        return _run(options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: object, code: int) -> int:
    print(f"sparse_labels: {message}".replace("\n", " "), file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    from rich.console import Console

    from . import report
    from .imports_data import DataError

    console, notes = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=100)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        data = _load(options, notes)
        console.print(data.describe(), highlight=False)
        train, test = data.split(options.seed)
        results, shape = _compare(train, test, options, notes)
        console.print(report.table(results, shape, train.positives_per_row))
        labels = data.labels.shape[1]
        saved = report.picture(results, data.describe(), shape, options.out)
        report.save_json(results, data.describe(), shape, options.out / "sparse_labels.json")
    except DataError as error:
        return _fail(f"error: {error}", 2)
    except OSError as error:
        return _fail(f"error: {error.filename or options.out}: {error.strerror or error}", 2)
    for line in (*report.answers(results, labels), f"Picture: {saved[0]} and {saved[1].name}"):
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def _load(options: argparse.Namespace, notes: "Console") -> "Dataset":
    from .imports_data import dataset_of_file, imports_of_environment

    if options.data is not None:
        return dataset_of_file(options.data, options.files)
    if options.files is not None:
        return imports_of_environment(options.files, options.seed, progress_on(notes))
    return imports_of_environment(FILES, options.seed, progress_on(notes), READ_SECONDS)


def _compare(
    train: "Dataset", test: "Dataset", options: argparse.Namespace, notes: "Console"
) -> "tuple[list[Result], Shape]":
    """Trains and judges every loss, then measures what a step of each costs."""
    from . import losses, training
    from .report import Result, Shape

    rows, labels = train.labels.shape
    shape = Shape(max(1, min(COST_ROWS, COST_ELEMENTS // labels)), labels)
    positives = train.positives_per_row
    with progress_on(notes) as progress:
        qualities = []
        for loss in losses.LOSSES:
            task = progress.add_task(loss.name, total=training.steps(rows, options.epochs))
            advance = partial(progress.advance, task)
            model = training.train(train, loss, options.epochs, options.seed, advance)
            qualities.append(training.evaluate(model, test, loss, positives))
        task = progress.add_task("cost of a step", total=1 + len(losses.KINDS))
        times = losses.step_milliseconds(losses.LOSSES, *shape, positives)
        progress.advance(task)
        peaks = {}
        for kind in losses.KINDS:
            peaks[kind] = losses.peak_bytes(kind, *shape, positives)
            progress.advance(task)
    return [
        Result(loss, quality, milliseconds, peaks[loss.kind])
        for loss, quality, milliseconds in zip(losses.LOSSES, qualities, times, strict=True)
    ], shape


if __name__ == "__main__":
    sys.exit(main())
