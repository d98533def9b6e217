"""Compares weighted_bce with the usual ways to compute the same loss.

Run as: python -m bench --help
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.command import add_reference, checked, obstacle, positive
from tools.files import check_folder
from tools.program import Parser, insist, run

from .names import AGAINST, BCE, DTYPES, LABELS, LARGEST, LOSSES, PASSES, TARGETS, in_rows

QUICK_ROUNDS, ROUNDS = 10, 20
QUICK_SECONDS, SECONDS = 1.5, 10.0
BUSY_ROUNDS = 200  # enough for a 95th percentile
BUSY_QUICK_SECONDS, BUSY_SECONDS = 60.0, 400.0
MOST = 1024  # threads, or processes that keep cores busy
TOLERANCE = 0.25
MOST_WEIGHT = 1e9  # float32 has larger ones, but not all sums of them
PROGRAM = "python -m bench"
PACKAGES = ("torch", "rich", "psutil")


DESCRIPTION = """\
Compares weighted_bce with other ways to compute the same loss: time, memory, and error against
float64. It also compares a linear layer fused with its loss with the two computed separately.
Without --shapes, --dtypes, --targets, --density and --threads, it measures a default set."""
EPILOG = """\
examples:
  python -m bench --quick
  python -m bench --shapes 256x100000 --targets bool,sparse --density 0.0001,0.01
  python -m bench --shapes 64x128x670091 --dtypes float32,bfloat16
  python -m bench --shapes 128x128x18154 --passes step --against fused-step,unfused,bce --busy 2
  python -m bench --quick --device cuda --loss focal --out results
  python -m bench --quick --check results
The exit code is 1 if weighted_bce fails, a baseline is wrong or --check finds a row
that is worse; 2 if an argument is wrong or the kernels, the device or memory are
missing; and 130 after an interrupt."""
SHAPES = f"""\
rows x labels, such as 1024x16384; a number of elements, such as 2^24, in rows of 16384; {LARGEST},
the largest power of two of elements that fits in memory; or rows x features x labels of a linear
layer, such as 256x256x131072"""
DEFAULT = "default: %(default)s"


def add(
    group: argparse._ArgumentGroup,
    name: str,
    parse: Callable[[str], Any],
    metavar: str,
    help: str,
    **more: Any,
) -> None:
    group.add_argument(name, type=parse, metavar=metavar, help=help, **more)


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    what = made.add_argument_group("what is measured (separate the values of a list by commas)")
    text = f"{', '.join(LOSSES)}; default: {BCE}"
    add(what, "--loss", _list(_one_of(LOSSES)), "L,...", text, dest="losses", default=[BCE])
    what.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"where; {DEFAULT}")
    text = "a small set, with fewer baselines and rounds: about a minute on a CPU"
    what.add_argument("--quick", action="store_true", help=text)
    add(what, "--shapes", _list(_shape), "S,...", SHAPES)
    add(what, "--dtypes", _list(_one_of(DTYPES)), "D,...", f"of the logits: {', '.join(DTYPES)}")
    text = f"{', '.join(TARGETS)}; float is the dtype of the logits, and sparse is SparseLabels"
    add(what, "--targets", _list(_one_of(TARGETS)), "T,...", text)
    text = "share of positives; default: 0.005, and for linear layers sparse labels, 5 in each row"
    add(what, "--density", _list(_density), "X,...", text, dest="densities")
    text = f"{', '.join(PASSES)}; a step is forward and backward"
    add(what, "--passes", _list(_one_of(PASSES)), "P,...", text)
    text = f"baselines, which are left out where they do not apply: {', '.join(AGAINST)}"
    add(
        what,
        "--against",
        _list(_one_of(AGAINST)),
        "A,...",
        f"{text}; default: all, fewer with --quick",
    )
    add(what, "--threads", _list(_threads), "N,...", "number of threads; default: torch's choice")
    add(what, "--pos-weight", _weight, "P", f"weight of positives; {DEFAULT}", default=7.0)
    add(what, "--seed", _seed, "N", f"seed of the random inputs; {DEFAULT}", default=0)
    how = made.add_argument_group("how it is measured")
    text = "keep cores busy with N other processes while rounds are timed, and show the mean,"
    text += f" the 95th percentile (of 20 rounds or more) and the worst; {DEFAULT}"
    add(how, "--busy", _busy, "N", text, default=0)
    text = f"default: {QUICK_ROUNDS} with --quick, {BUSY_ROUNDS} with --busy, otherwise {ROUNDS}"
    add(
        how,
        "--rounds",
        positive,
        "N",
        f"at most N rounds, in which all baselines take turns; {text}",
    )
    text = f"default: {QUICK_SECONDS:g} with --quick, otherwise {SECONDS:g};"
    text += f" with --busy {BUSY_QUICK_SECONDS:g} and {BUSY_SECONDS:g}"
    add(
        how,
        "--seconds",
        _above_zero,
        "S",
        f"end a group after S seconds, but not before 5 rounds; {text}",
    )
    text = "write results.json, results.csv and pictures to DIR, also if the run is interrupted"
    add(how, "--out", Path, "DIR", text)
    text = "compare ratios, memory and errors with the results.json of an earlier run"
    add(how, "--check", _results, "FILE", text)
    text = f"change of ratios and memory that --check accepts; {DEFAULT}; errors may double"
    add(how, "--tolerance", _above_zero, "X", text, default=TOLERANCE)
    add_reference(how, " for the CPU")
    return made


def _list(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    return checked(str, names.__contains__, f"of {', '.join(names)}")


def _sizes(text: str) -> tuple[int, ...]:
    """Returns the sizes of a shape; 0 rows stand for as many as fit in memory."""
    if text == LARGEST:
        return 0, LABELS
    words = text.split("x")
    sizes = tuple(_power(w[2:]) if w.startswith("2^") else int(w) for w in words)
    if len(sizes) > 3 or not all(1 <= size < 2**63 for size in sizes):
        raise ValueError
    return sizes if len(sizes) > 1 else in_rows(*sizes)


def _power(text: str) -> int:
    return 2 ** min(63, int(text))  # a larger one would take all memory


_seed = checked(int, lambda n: 0 <= n < 2**63, "a whole number of at least 0")
_busy = checked(int, lambda n: 0 <= n <= MOST, f"a whole number from 0 to {MOST}")
_threads = checked(int, lambda n: 1 <= n <= MOST, f"a whole number from 1 to {MOST}")
_density = checked(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
_weight = checked(float, lambda x: 0 <= x <= MOST_WEIGHT, f"a number from 0 to {MOST_WEIGHT:g}")
_above_zero = checked(float, lambda x: 0 < x < math.inf, "a finite number above 0")
_shape = checked(_sizes, bool, "like 1024x16384, 256x256x131072 or a number of elements as 2^20")


def _results(text: str) -> Path:
    path = Path(text) / "results.json" if Path(text).is_dir() else Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"must be the results of an earlier run, got {text!r}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    return run(PROGRAM, lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(given: Sequence[str]) -> None:
    options = parser().parse_args(given)
    options.arguments = given
    rounds, seconds = _limits(options.quick, options.busy > 0)
    options.rounds, options.seconds = options.rounds or rounds, options.seconds or seconds
    packages = (*PACKAGES, "matplotlib") if options.out else PACKAGES
    on_cpu = options.device == "cpu"
    what = "--reference is for --device cpu: a GPU is measured with its kernels"
    insist(on_cpu or not options.reference, what)
    if options.out:
        check_folder("--out", options.out)
    # Whether the kernels of a GPU can be used, .device finds out.
    why_not = obstacle(packages, options.reference or not on_cpu, extra="bench")
    insist(not why_not, why_not)
    # Imported late, so that --help and wrong arguments do not wait for torch.
    from .run import run as measure_all

    measure_all(options)


def _limits(quick: bool, busy: bool) -> tuple[int, float]:
    """Returns the default number of rounds, and the seconds after which a group ends."""
    if busy:
        return BUSY_ROUNDS, BUSY_QUICK_SECONDS if quick else BUSY_SECONDS
    return (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)


if __name__ == "__main__":
    sys.exit(main())
