"""Compares the fused loss with the usual ways to write it.

Run as: python -m bench --help
"""

import argparse
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

QUICK_ROUNDS, ROUNDS = 10, 30


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage that would bury it."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench",
        description=(
            "Times a training step and the forward pass alone of weighted_bce, of the masked "
            "multiply, of PyTorch's own loss, eager and compiled, and of copy_ as the yardstick, "
            "in rounds in which all take turns; then a small input, and the memory that a step "
            "needs. Before that, all must agree on the loss and its gradient."
        ),
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="fewer rounds and sizes, and only --dtype and a bool target; otherwise all three "
        "dtypes, and on the CPU float32 and int64 targets too",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--rows", type=_positive, metavar="N", help="default on the CPU: 1024")
    size.add_argument(
        "--elements",
        type=_elements,
        metavar="N,...",
        help="sizes instead of --rows, such as 2^20,2^28; rounded down to whole rows (default on "
        "CUDA: 2^20, 2^22, ... 2^30 and 2^31; with --quick 2^20, 2^24 and 2^28)",
    )
    add("--labels", type=_positive, default=16384, metavar="N", help="default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add(
        "--density",
        type=_density,
        default=0.005,
        metavar="X",
        help="share of positives among the targets (default: %(default)s)",
    )
    add("--pos-weight", type=_weight, default=7.0, metavar="P", help="default: %(default)s")
    add(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"default: {QUICK_ROUNDS} with --quick, otherwise {ROUNDS}",
    )
    add("--json", type=_writable, metavar="FILE", help="write all numbers to this file too")
    add("--no-compile", dest="compile", action="store_false", help=argparse.SUPPRESS)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _elements(text: str) -> list[int]:
    return [_size(part.strip()) for part in text.split(",")]


def _size(text: str) -> int:
    """A whole number above 0, or a power of two such as 2^20."""
    base, power, exponent = text.partition("^")
    if power and (base != "2" or not exponent.isdecimal() or int(exponent) > 62):
        raise argparse.ArgumentTypeError(f"must be numbers or powers such as 2^20, got {text!r}")
    return 2 ** int(exponent) if power else _positive(base)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _density(text: str) -> float:
    if not 0 <= _number(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return float(text)


def _weight(text: str) -> float:
    if not 0 <= _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text!r}")
    return float(text)


def _writable(text: str) -> Path:
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    # Imported late, so that --help and wrong arguments do not wait for torch.
    from .device import Refusal
    from .run import run

    try:
        run(options)
    except Refusal as error:
        return _fail(error, error.code)
    return 0


def _fail(message: object, code: int) -> int:
    print(f"python -m bench: {message}", file=sys.stderr)
    return code


def _interrupt(*_: object) -> NoReturn:
    """Ends at once: a KeyboardInterrupt may get lost in an import, or in compiled code."""
    os._exit(_fail("interrupted", 130))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())
