"""The device of a program; torch is not imported for it where the process does not use a GPU."""

import argparse
import sys

from tools.command import checked
from tools.program import insist

elements = checked(int, lambda n: 0 < n < 2**40, "a whole number above 0 and below 2**40")


def add_device(parser: argparse.ArgumentParser) -> None:
    text = "default: %(default)s"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=text)


def check_device(name: str) -> None:
    import torch

    insist(name == "cpu" or torch.cuda.is_available(), "--device cuda: torch finds no GPU")


def synchronize() -> None:
    """Waits for the GPU; raises the error of a kernel that has failed since."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Whether an error has left the GPU unusable for this process."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False
