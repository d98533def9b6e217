"""Builds, checks and measures the package on this machine's GPU.

Run as: python -m tools.gpu --help
"""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.command import checked
from tools.files import check_folder
from tools.program import Parser, insist, run

from .course import NAMES, Course
from .machine import Machine, facts
from .report import summary

PROGRAM = "python -m tools.gpu"


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Builds the package for this machine's GPU, checks it there and measures it.",
        epilog="The exit code is 0 if all parts succeed, 1 if one does not, and 2 without a GPU.",
    )
    add = parser.add_argument
    text = "time limit for all parts together; default: %(default)g"
    add("--minutes", type=MINUTES, default=9.0, metavar="M", help=text)
    text = "folder for the results; default: %(default)s"
    add("--out", type=Path, default=Path("build/gpu"), metavar="DIR", help=text)
    text = f"the parts to run; default: all, which are {','.join(NAMES)}"
    add("--parts", type=PARTS, default=NAMES, metavar="P,...", help=text)
    text = (
        "an extension that was built earlier, such as the one in --out; if it does not run here, "
    )
    add("--library", type=Path, metavar="FILE", help=f"{text}a new one is built")
    text = "commit of the sources; default: what git says, or the file COMMIT"
    add("--commit", default="", help=text)
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


MINUTES = checked(float, lambda minutes: 0 < minutes < 1e4, "minutes above 0")
PARTS = checked(_names, lambda names: {*names} <= {*NAMES}, f"of {', '.join(NAMES)}")


def main(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    return run(PROGRAM, lambda: _run(arguments, machine or Machine()))


def _run(arguments: Sequence[str] | None, machine: Machine) -> int:
    start = time.monotonic()
    options = _parser().parse_args(arguments)
    library = options.library
    insist(library is None or library.is_file(), f"--library {library} is no file")
    check_folder("--out", options.out)
    known = facts(machine, options.commit)
    end = start + 60 * options.minutes
    course = Course(machine, known, options.out, options.parts, end, library)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, course.interrupt)
    code = course.run()
    print("\n".join(summary(course.results, options.out, code)), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
