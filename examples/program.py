"""How a command line ends, and what it prints to."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


FORMATS = (
    "a file in the extreme classification repository's format (a first line 'rows features "
    "labels'), or svmlight multilabel; may be .gz or .bz2"
)


class UserError(Exception):
    """An error that the user can mend; its message is one line."""


def run(name: str, work: Callable[[], None]) -> int:
    """The exit code: 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
    try:
        work()
        return 0
    except UserError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        names = f"{error.filename}: " if error.filename else ""
        message, code = f"error: {names}{error.strerror or error}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    print(f"{name}: {message}".replace("\n", " "), file=sys.stderr)
    return code


def insist(obstacle: str) -> None:
    if obstacle:
        raise UserError(obstacle)


def consoles() -> "tuple[Console, Console]":
    """The console of results, wide enough for a table in a file too, and that of progress."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=100), Console(stderr=True)
