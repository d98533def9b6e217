"""How the benchmark, the examples and the tools end: with one sentence where something is wrong."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TextIO

WRONG, BAD_ARGUMENT, INTERRUPTED = 1, 2, 130  # exit codes


class Refusal(Exception):
    """Ends a program with one sentence and an exit code.

    The code is 2 for what the user can ask for in another way, and 1 for what went wrong.
    """

    def __init__(self, message: object, code: int = BAD_ARGUMENT) -> None:
        super().__init__(message)
        self.code = code


def insist(holds: object, problem: str) -> None:
    if not holds:
        raise Refusal(problem)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one sentence, without the long usage text."""
        tell(self.prog, message)
        self.exit(BAD_ARGUMENT)

    def print_help(self, file: Any = None) -> None:
        """Prints the help; argparse itself hides that it cannot be written."""
        print(self.format_help(), end="", file=file)


def run(program: str, work: Callable[[], int | None]) -> int:
    """Returns the exit code of a program: that of its work, if it gives one.

    What the user or the machine has done wrong becomes one sentence, and Ctrl-C as well. Where the
    reader of a pipe has gone, nothing is left to say.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files can be no text at all
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return work() or 0
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # a failure at exit could not be caught
    except Refusal as error:
        message, code = str(error), error.code
    except BrokenPipeError:
        message, code = "", WRONG
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        message, code = f"{name}{error.strerror or error}", WRONG
    except ImportError as error:  # a package that is there and does not work
        message, code = f"{error.name or 'a package'} cannot be imported: {error}", WRONG
    except Exception as error:
        if not out_of_memory(error):
            raise
        message, code = f"memory ran out: {first_line(error)}", WRONG
    if message:
        tell(program, message)
    _discard_what_cannot_be_written()
    return code


def tell(program: str, message: str) -> None:
    """Prints what went wrong as one line on stderr."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{program}: {' '.join(message.splitlines())}\n")


def _discard_what_cannot_be_written() -> None:
    """Python tries it again at exit, and would print a second message."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def out_of_memory(error: BaseException) -> bool:
    """Tells whether memory ran out. weighted_bce words that differently than torch (tensors.h)."""
    pattern = "out of memory|failed to allocate a tensor|can't allocate memory"
    words = re.search(pattern, str(error), re.IGNORECASE)
    return isinstance(error, MemoryError) or words is not None


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shortened(text: str, most: int) -> str:
    """Returns a text of at most so many characters, which says where it was cut."""
    return text if len(text) <= most else text[: most - 3] + "..."
