"""What the command lines of the examples share."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Of the environment, that are read.
FILES = 15_000
# A slow machine reads fewer, and so has less to train on: the demo ends within four minutes.
READ_SECONDS = 45


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2**32, got {text!r}")
    return int(text)


def progress_on(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), Remaining())
    return Progress(*columns, console=console, disable=not console.is_terminal)
