"""Functions that the command lines of the benchmark and the examples share."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")
# Files of the environment that are read.
FILES = 15_000
# A slow machine reads fewer files, and trains on less, so that the demo ends within five minutes.
READ_SECONDS = 45
MODULES = {"scikit-learn": "sklearn"}  # packages that are imported by another name


def obstacle(
    packages: Iterable[str], reference: bool, device: str = "cpu", extra: str = "examples"
) -> str:
    """Returns a line that says why a program cannot run as it should, or "" if it can.

    Args:
        packages: the packages it needs, by their names for pip.
        reference: whether it may run without the kernels.
        device: where the kernels should run.
        extra: the extra of weighted_bce that has these packages.
    """
    absent = [name for name in packages if find_spec(MODULES.get(name, name)) is None]
    if absent:
        pip = f"{shlex.quote(sys.executable or 'python')} -m pip install {' '.join(absent)}"
        needs = f"it needs {', '.join(absent)}, which weighted_bce[{extra}] has"
        return f"{needs}. To install what is missing, run: {pip}"
    reason = "" if reference else why_no_kernels(device)
    if not reason:
        return ""
    return f"weighted_bce would be plain PyTorch, which --reference allows: {reason}"


def why_no_kernels(device: str) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weighted_bce runs without", RuntimeWarning)
        import torch

        from weighted_bce import backend, weighted_bce_with_logits
    if os.environ.get("WEIGHTED_BCE_BACKEND") == "reference":
        return "WEIGHTED_BCE_BACKEND is set to reference. To use the kernels, unset this variable"
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
    text = f"run without the kernels{where}; weighted_bce is then plain PyTorch"
    parser.add_argument("--reference", action="store_true", help=text)


def checked(kind: Callable[[str], T], fits: Callable[[T], bool], wanted: str) -> Callable[[str], T]:
    """Returns the type of an argument for argparse: a kind, with a condition on its value."""

    def parse(text: str) -> T:
        with suppress(ValueError):
            value = kind(text)
            if fits(value):
                return value
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")

    return parse


positive = checked(int, lambda n: 0 < n < 2**31, "a whole number above 0 and below 2**31")
seed = checked(int, lambda n: 0 <= n < 2**32, "a whole number below 2**32")
