"""What the command lines of the benchmark and of the examples share."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
# Files of the environment that are read.
FILES = 15_000
# A slow machine reads fewer, and so has less to train on: the demo ends within five minutes.
READ_SECONDS = 45
MODULES = {"scikit-learn": "sklearn"}  # packages that are imported by another name


def obstacle(packages: Iterable[str], reference: bool, device: str = "cpu") -> str:
    """The line that says why a program cannot show what it promises; "" where it can.

    Args:
        packages: what it needs, by the names that pip takes.
        reference: whether it may run without kernels.
        device: where the kernels should run.
    """
    absent = [name for name in packages if find_spec(MODULES.get(name, name)) is None]
    if absent:
        pip = f"{shlex.quote(sys.executable or 'python')} -m pip install {' '.join(absent)}"
        return f"it needs {', '.join(absent)}. To install what is missing, run: {pip}"
    reason = "" if reference else why_no_kernels(device)
    return f"ours would be plain PyTorch, which --reference allows: {reason}" if reason else ""


def why_no_kernels(device: str) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weighted_bce runs without", RuntimeWarning)
        import torch

        from weighted_bce import backend, weighted_bce_with_logits
    if os.environ.get("WEIGHTED_BCE_BACKEND") == "reference":
        return "the variable WEIGHTED_BCE_BACKEND is set to it. To take the kernels, unset that"
    nothing = torch.empty(0, device=device)
    try:
        with backend("fused"):
            weighted_bce_with_logits(nothing, nothing)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def add_reference(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, where: str = ""
) -> None:
    text = f"go on without kernels{where}: what is called ours is then plain PyTorch"
    parser.add_argument("--reference", action="store_true", help=text)


def checked(kind: Callable[[str], T], fits: Callable[[T], bool], wanted: str) -> Callable[[str], T]:
    """The type of an argument: the kind, where the value fits what is wanted."""

    def parse(text: str) -> T:
        with suppress(ValueError):
            value = kind(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")

    return parse


positive = checked(int, lambda n: n > 0, "a whole number above 0")
seed = checked(int, lambda n: 0 <= n < 2**32, "a whole number below 2**32")


def progress_on(console: "Console", **options: bool) -> "Progress":
    """A bar, on a terminal; the options are those of rich.progress.Progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), Remaining())
    return Progress(*columns, console=console, disable=not console.is_terminal, **options)
