"""Compares the fused loss with the usual ways to write it.

Run as: python -m bench --help
"""

import argparse
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tools.command import add_reference, obstacle

from .names import AGAINST, DTYPES, LABELS, LARGEST, PASSES, TARGETS, in_rows

QUICK_ROUNDS, ROUNDS = 10, 20
QUICK_SECONDS, SECONDS = 1.5, 10.0
TOLERANCE = 0.25
PACKAGES = ("torch", "rich", "psutil")
T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage that would bury it."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Compares weighted_bce with the other ways to compute the same loss, side by side:\n"
            "time, memory, and error against float64; and a linear layer and its loss in one with\n"
            "the two of them apart. Without a choice of shapes, dtypes,\n"
            "targets, densities or threads it measures a grid of them: how the cost grows with\n"
            "each."
        ),
        epilog=(
            "examples:\n"
            "  python -m bench --quick\n"
            "  python -m bench --shapes 256x100000 --targets bool,sparse --density 0.0001,0.01\n"
            "  python -m bench --shapes 64x128x670091 --dtypes float32,bfloat16\n"
            "  python -m bench --quick --device cuda --out results\n"
            "  python -m bench --quick --check results\n"
            "It ends with 1 where ours fails, a contender is wrong or a check fails, with 2 on\n"
            "wrong arguments or without kernels, device or memory, with 130 when interrupted."
        ),
    )
    what = parser.add_argument_group("what is measured (lists are separated by commas)")
    how = parser.add_argument_group("how")
    add = what.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    add(
        "--quick",
        action="store_true",
        help="a small grid, fewer contenders and rounds: about a minute on a CPU",
    )
    add(
        "--shapes",
        type=_list(_shape),
        metavar="S,...",
        help="such as 1024x16384 (rows x labels), or elements such as 2^24, in rows of 16384; "
        f"{LARGEST}: the largest power of two of elements for which ours has memory; "
        "256x256x131072 (rows x features x labels): of a linear layer and its loss",
    )
    add("--dtypes", type=_list(_one_of(DTYPES)), metavar="D,...", help=", ".join(DTYPES))
    add("--targets", type=_list(_one_of(TARGETS)), metavar="T,...", help=", ".join(TARGETS))
    add(
        "--density",
        type=_list(_density),
        metavar="X,...",
        help="share of positives among the targets (default: 0.005; of linear layers 5 in each "
        "row, of sparse labels)",
    )
    add("--passes", type=_list(_one_of(PASSES)), metavar="P,...", help=", ".join(PASSES))
    add(
        "--against",
        type=_list(_one_of(AGAINST)),
        metavar="A,...",
        help="beside the yardstick and ours, as far as they fit what is measured; default: all "
        f"that are installed, with --quick not all ({', '.join(AGAINST)})",
    )
    add("--threads", type=_list(_positive), metavar="N,...", help="default: as torch chooses")
    add("--pos-weight", type=_weight, default=7.0, metavar="P", help="default: %(default)s")
    add("--seed", type=_seed, default=0, metavar="N", help="of the inputs (default: %(default)s)")
    add = how.add_argument
    add(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"at most, in which all take turns; default: {QUICK_ROUNDS} with --quick, "
        f"otherwise {ROUNDS}",
    )
    add(
        "--seconds",
        type=_above_zero,
        metavar="S",
        help="after which a group ends, 5 rounds done; "
        f"default: {QUICK_SECONDS:g} with --quick, otherwise {SECONDS:g}",
    )
    add(
        "--out",
        type=_folder,
        metavar="DIR",
        help="write results.json, results.csv and pictures there, as far as the run has come",
    )
    add(
        "--check",
        type=_results,
        metavar="FILE",
        help="compare the ratios, memory and errors with the results.json of an earlier run",
    )
    add(
        "--tolerance",
        type=_above_zero,
        default=TOLERANCE,
        metavar="X",
        help="by which --check lets ratios and memory change (default: %(default)s); errors may "
        "double",
    )
    add_reference(how, " for the CPU")
    return parser


def _list(of: Callable[[str], T]) -> Callable[[str], list[T]]:
    return lambda text: [of(part.strip()) for part in text.split(",")]


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            wanted = ", ".join(names)
            raise argparse.ArgumentTypeError(f"must be of {wanted}, got {text!r}")
        return text

    return parse


def _shape(text: str) -> tuple[int, ...]:
    """A shape of 0 rows stands for as many as there is memory for."""
    if text == LARGEST:
        return 0, LABELS
    try:
        sizes = tuple(map(_size, text.split("x")))
        if len(sizes) > 3:
            raise ValueError
    except ValueError:
        wanted = "1024x16384, 256x256x131072 or a number of elements such as 2^20"
        raise argparse.ArgumentTypeError(f"must be like {wanted}, got {text!r}") from None
    return sizes if len(sizes) > 1 else in_rows(*sizes)


def _size(text: str) -> int:
    """A whole number above 0, or a power of two."""
    base, power, exponent = text.partition("^")
    if power and (base != "2" or not exponent.isdecimal() or int(exponent) > 62):
        raise ValueError
    found = 2 ** int(exponent) if power else int(base) if base.isdecimal() else 0
    if found == 0:
        raise ValueError
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


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


def _above_zero(text: str) -> float:
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return float(text)


def _folder(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}: {error.strerror}") from None
    return path


def _results(text: str) -> Path:
    path = Path(text)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"must be results of an earlier run, got {text!r}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    options.arguments = given
    quick = options.quick
    options.rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    options.seconds = options.seconds or (QUICK_SECONDS if quick else SECONDS)
    packages = (*PACKAGES, "matplotlib") if options.out else PACKAGES
    on_cpu = options.device == "cpu"
    if options.reference and not on_cpu:
        return _fail("--reference is for --device cpu: a GPU is measured with its kernels", 2)
    why_not = obstacle(packages, options.reference or not on_cpu)  # .device asks of a GPU
    if why_not:
        return _fail(why_not, 2)
    # Imported late, so that --help and wrong arguments do not wait for torch.
    from .device import Refusal
    from .run import run

    try:
        run(options, _finish_when_interrupted)
    except Refusal as error:
        return _fail(error, error.code)
    return 0


def _fail(message: object, code: int) -> int:
    print(f"python -m bench: {message}", file=sys.stderr)
    return code


def _finish_when_interrupted(run: Any) -> None:
    def finish(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, _interrupt)  # the second one does not wait
        run.finish()
        _interrupt()

    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, finish)


def _interrupt(*_: object) -> NoReturn:
    """Ends at once: a KeyboardInterrupt may get lost in an import, or in compiled code."""
    sys.stdout.flush()
    os._exit(_fail("interrupted", 130))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())
