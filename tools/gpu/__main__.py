"""Proves the package on this machine's GPU: builds it, checks it, measures it.

Run as: python -m tools.gpu --help
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .course import NAMES, Course
from .machine import Machine, NoGpu, facts
from .report import summary

NO_GPU = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu",
        description="Builds the package for this machine's GPU, proves it there, and measures it.",
        epilog="It ends with 0 where all is well, with 1 where a part is not, 2 without a GPU.",
    )
    add = parser.add_argument
    add("--minutes", type=_minutes, default=9.0, metavar="M", help="in all; default: %(default)g")
    add("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="default: %(default)s")
    add(
        "--parts",
        type=_parts,
        default=NAMES,
        metavar="P,...",
        help=f"default: all, which are {','.join(NAMES)}",
    )
    add(
        "--library",
        type=Path,
        metavar="FILE",
        help="an extension that was built earlier, such as the one in --out; a new one is built "
        "where it does not run",
    )
    add("--commit", default="", help="default: what git says, or the file COMMIT")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < 1e4:
        raise ValueError
    return minutes


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(NAMES)}, got {name!r}")
    return names


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    start = time.monotonic()
    options = _parser().parse_args(arguments)
    machine = machine or Machine()
    try:
        known = facts(machine, options.commit)
    except NoGpu as error:
        print(f"python -m tools.gpu: no GPU: {error}", file=sys.stderr)
        return NO_GPU
    end = start + 60 * options.minutes
    course = Course(machine, known, options.out, options.parts, end, options.library)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, course.interrupt)
    code = course.run()
    print("\n".join(summary(course.results, options.out, code)), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
