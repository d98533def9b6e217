"""Trains a classifier of very many labels without holding its logits, and ranks with it.

Run as: python -m examples.extreme_labels --help
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command import FILES, READ_SECONDS, obstacle, progress_on

from .extreme_options import COMPARED_STEPS, EPOCHS, MADE_UP_ROWS, parser

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from .extreme_training import Cost, Settings
    from .imports_data import Dataset
    from .ranking import Quality

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "rich", "psutil")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.test is not None and options.data in (None, "imports"):
        return _fail("error: --test needs --data FILE", 2)
    try:
        return _run(options)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message: object, code: int) -> int:
    print(f"extreme_labels: {message}".replace("\n", " "), file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    # Imported late: --help is at once there, and Ctrl-C during these imports is caught.
    why_not = obstacle(PACKAGES, reference=True)
    if why_not:
        return _fail(f"error: {why_not}", 2)
    import torch
    from rich.console import Console

    from .imports_data import DataError

    console, notes = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=100)
    if options.device == "cuda" and not torch.cuda.is_available():
        return _fail("error: --device cuda needs a GPU, and torch finds none", 2)
    why_not = obstacle((), options.reference, options.device)
    if why_not:
        return _fail(f"error: {why_not}", 2)
    try:
        train, test = _load(options, notes)
    except DataError as error:
        return _fail(f"error: {error}", 2)
    settings = settings_of(options)
    batches = _batches(train.labels.shape[0], options)
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(_description(train, test))
    with progress_on(notes) as progress:
        ours, quality = _train_and_rank(train, test, batches, settings, progress)
        plain = None
        if options.compare:
            plain = _train_plainly(train, batches[:COMPARED_STEPS], settings, progress)
    say(f"loss of a row: {ours.losses[0]:.2f} at first, {ours.losses[-1]:.2f} in the last step")
    console.print(_quality_table(quality))
    costs = {"chunks, fused step" if options.fused else "chunks": ours}
    if isinstance(plain, str):
        say(plain)
    elif plain is not None:
        costs["plain torch"] = plain
    console.print(_cost_table(costs, len(batches[:COMPARED_STEPS])))
    encoder = 4 * settings.buckets * settings.dim / 2**20
    say(f"The encoder's gradient has {encoder:,.1f} MiB of the peak.")
    return 0


def settings_of(options: argparse.Namespace) -> "Settings":
    from .extreme_training import Settings

    return Settings(**{name: getattr(options, name) for name in Settings._fields})


def _load(options: argparse.Namespace, notes: "Console") -> "tuple[Dataset, Dataset]":
    """Rows to train on and held-out ones."""
    from .extreme_training import made_up
    from .imports_data import DataError, dataset_of_file, imports_of_environment
    from .ranking import DEEPEST

    if options.labels is not None:
        rows = options.rows or MADE_UP_ROWS
        data = made_up(options.labels, rows, options.features, options.seed)
    elif options.data in (None, "imports"):
        seconds = READ_SECONDS if options.rows is None else math.inf
        files = options.rows or FILES
        data = imports_of_environment(files, options.seed, progress_on(notes), seconds)
    else:
        data = dataset_of_file(Path(options.data), options.rows)
    rows, labels = data.labels.shape
    if rows < 2:
        raise DataError(f"{rows} row is not enough to train and to test")
    if labels < DEEPEST:
        raise DataError(f"{labels} labels are too few: the first {DEEPEST} are ranked")
    if options.test is None:
        return data.split(options.seed)
    test = dataset_of_file(Path(options.test))
    if test.labels.shape[1] != labels:
        found = test.labels.shape[1]
        raise DataError(f"{options.test} has {found} labels and {options.data} has {labels}")
    return data, test


def _batches(rows: int, options: argparse.Namespace) -> "list[np.ndarray]":
    from . import training

    epochs = options.epochs or EPOCHS
    if options.steps is not None:
        epochs = -(-options.steps // training.steps(rows, 1, options.batch))
    return list(islice(training.batches(rows, epochs, options.seed, options.batch), options.steps))


def _description(train: "Dataset", test: "Dataset") -> str:
    rows, labels = train.labels.shape
    return (
        f"{train.source}: {rows:,} rows to train on and {test.labels.shape[0]:,} held out, "
        f"{labels:,} labels, {train.positives_per_row:.1f} per row"
    )


def _train_and_rank(
    train: "Dataset",
    test: "Dataset",
    batches: "list[np.ndarray]",
    settings: "Settings",
    progress: "Progress",
) -> "tuple[Cost, Quality]":
    from . import extreme_training as extreme

    show = _shown(progress, "training", len(batches))
    model, cost = extreme.train(train, batches, settings, shown=show)
    task = progress.add_task("ranking", total=test.labels.shape[0])
    propensity = extreme.propensity(train, settings)
    return cost, extreme.evaluate(model, test, propensity, partial(progress.advance, task))


def _shown(progress: "Progress", name: str, steps: int) -> "Callable[[float], None]":
    task = progress.add_task(name, total=steps)
    return lambda loss: progress.update(task, advance=1, description=f"{name}, loss {loss:.2f}")


def _train_plainly(
    train: "Dataset", batches: "list[np.ndarray]", settings: "Settings", progress: "Progress"
) -> "Cost | str":
    """What it costs, or why it was not tried."""
    from . import extreme_training as extreme

    needed = extreme.bytes_of_plain(len(batches[0]), train.labels.shape[1], settings)
    free = extreme.free_bytes(settings.device)
    if needed > free:
        return (
            f"Plain torch is left out: it would take about {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free."
        )
    show = _shown(progress, "plain torch", len(batches))
    return extreme.train(train, batches, settings, plain=True, shown=show)[1]


def _quality_table(quality: "Quality") -> "Table":
    from .ranking import KS

    table = _table("held-out rows, %", *(f"at {k}" for k in KS))
    names = ("precision", "nDCG", "propensity-scored precision")
    for name, values in zip(names, quality, strict=True):
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    return table


def _cost_table(costs: "dict[str, Cost]", step: int) -> "Table":
    table = _table("a training step", "median s", "peak MiB", f"loss, step {step}")
    for name, cost in costs.items():
        peak = "n/a" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:,.1f}"
        table.add_row(name, f"{cost.seconds:.3f}", peak, f"{cost.losses[step - 1]:.4f}")
    return table


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first, min_width=len("propensity-scored precision"))
    for header in others:
        table.add_column(header, justify="right", min_width=10)
    return table


if __name__ == "__main__":
    sys.exit(main())
